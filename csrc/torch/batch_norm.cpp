#include "glue.hpp"
