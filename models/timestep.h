// timestep.h: sinusoidal features of a number (Vaswani et al. 2017; as in DiT and diffusers'
// get_timestep_embedding with the cosine first).
#ifndef KILN_MODELS_TIMESTEP_H
#define KILN_MODELS_TIMESTEP_H

// Features of t (a timestep in 0..1, or a guidance scale): cos(1000 t f_i), then sin(1000 t f_i),
// f_i = 10000^(-i / (width / 2)). out [width], width even.
void timestep_features(double t, int width, float *out);
// The same of t in thousandths (1000 times a timestep or guidance scale, in float32), with every angle
// rounded to float32 on the way, as diffusers' FLUX has it: at a guidance of 3.5 (angles up to 3500)
// that moves the features by up to 2e-4, and pictures with them.
void timestep_features_f32(float t, int width, float *out);

#endif
