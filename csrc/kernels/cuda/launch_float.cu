#define PYNAS_TYPE float
#include "launch.inc"
