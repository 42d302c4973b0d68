// act.glsl: the activations of ops/tensor.h and their slopes. Written so that no argument
// overflows: exp is only taken of numbers up to 80, and NaN passes through.

float exp_safe(float x) { return exp(x > 80.0 ? 80.0 : x); }
float sigmoid(float x) { return 1.0 / (1.0 + exp_safe(-x)); }

// Near 0 by its series (1 - e^-2x would cancel), else from e^-2|x|, which cannot overflow.
float tanh_safe(float x) {
    float a = abs(x);
    if (a < 0.25) {
        float s = x * x;
        return x + x * s * (-0.33333333 + s * (0.13333333 + s * (-0.053968254 + s * 0.021869489)));
    }
    float e = exp(-2.0 * a);
    float t = (1.0 - e) / (1.0 + e);
    return x < 0.0 ? -t : t;
}

// Complementary error function, relative error under 1.2e-7 (Press et al., Numerical Recipes,
// Chebyshev fit of erfc).
float erfc_fit(float x) {
    float z = abs(x), t = 1.0 / (1.0 + 0.5 * z);
    float p = -0.82215223 + t * 0.17087277;
    p = 1.48851587 + t * p;
    p = -1.13520398 + t * p;
    p = 0.27886807 + t * p;
    p = -0.18628806 + t * p;
    p = 0.09678418 + t * p;
    p = 0.37409196 + t * p;
    p = 1.00002368 + t * p;
    float r = t * exp(-z * z - 1.26551223 + t * p);
    return x >= 0.0 ? r : 2.0 - r;
}

// sqrt(2/pi) (x + 0.044715 x^3), and its slope.
float gelu_inner(float x) { return 0.7978845608 * (x + 0.044715 * x * x * x); }
float gelu_inner_slope(float x) { return 0.7978845608 * (1.0 + 0.134145 * x * x); }

float act_value(uint act, float x) {
    switch (act) {
    case ACT_SILU: return x * sigmoid(x);
    case ACT_GELU: return x * sigmoid(2.0 * gelu_inner(x)); // 1 + tanh u = 2 sigmoid 2u
    case ACT_GELU_ERF: return 0.5 * x * erfc_fit(-0.7071067812 * x);
    case ACT_QUICK_GELU: return x * sigmoid(1.702 * x);
    case ACT_RELU: return x < 0.0 ? 0.0 : x;
    case ACT_TANH: return tanh_safe(x);
    case ACT_SIGMOID: return sigmoid(x);
    }
    return x;
}

// d act_value / dx; at 0 of ReLU: 0.
float act_slope(uint act, float x) {
    float s;
    switch (act) {
    case ACT_SILU: s = sigmoid(x); return s + x * s * (1.0 - s);
    case ACT_GELU:
        s = sigmoid(2.0 * gelu_inner(x));
        return s + 2.0 * x * s * (1.0 - s) * gelu_inner_slope(x);
    case ACT_GELU_ERF:
        return 0.5 * erfc_fit(-0.7071067812 * x) + 0.3989422804 * x * exp(-0.5 * x * x);
    case ACT_QUICK_GELU: s = sigmoid(1.702 * x); return s + 1.702 * x * s * (1.0 - s);
    case ACT_RELU: return x > 0.0 ? 1.0 : 0.0;
    case ACT_TANH: s = tanh_safe(x); return 1.0 - s * s;
    case ACT_SIGMOID: s = sigmoid(x); return s * (1.0 - s);
    }
    return 1.0;
}
