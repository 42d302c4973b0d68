// model_path.h: where a model that was named by a user is.
#ifndef KILN_ENGINE_MODEL_PATH_H
#define KILN_ENGINE_MODEL_PATH_H

#include "backend/base.h"

// The file that `model` names, below `parent`: a file; model.safetensors in a folder; or a bare
// name ("nano": the shipped model), looked up as NAME.safetensors and NAME in the folder of the
// environment variable KILN_MODELS, beside the program (built or installed), in the installed
// data folder and in the source tree. NULL with an error that lists where it looked.
char *model_path(void *parent, const char *model, Error *err);

#endif
