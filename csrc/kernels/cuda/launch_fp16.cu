#define PYNAS_TYPE fp16
#include "launch.inc"
