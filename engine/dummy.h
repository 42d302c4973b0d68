// dummy.h: weights that cost no disk and hardly any memory: computed when read, behind the same
// reader as files (weights.h), so that streaming, upload and dequantisation run as with real ones.
//
// Byte ranges come from a counter-based generator (SplitMix64 over tensor and position, choosing from
// a pool of 256 KiB per type and size of numbers): the same on every machine, in any order, from any
// thread, at several GB/s. Matrices differ from each other. They have mean 0 (nearly, in types that
// are not symmetric) and variance 1 / (inputs of a row), so that activations stay finite; vectors named
// ".weight" or ".scale" (norms) lie around 1, others (biases) are small.
#ifndef KILN_ENGINE_DUMMY_H
#define KILN_ENGINE_DUMMY_H

#include "engine/bind.h"

// A tensor for each of the `count` wants, under its canonical name. `type`: of tensors with two
// dimensions and more: f32, f16, bf16 or any packed type; convolutions and tensors whose rows are no
// whole blocks of it are bf16 then. Vectors are f32 where type is, else bf16. `name` stands in
// messages for a path. Nothing of `wants` is kept. End with weights_close.
Weights *dummy_weights(void *parent, const char *name, const BindWant *wants, int count, DType type,
                       uint64_t seed);

#endif
