#define PYNAS_TYPE bf16
#include "launch.inc"
