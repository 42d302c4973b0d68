// sum.glsl: long sums in f32 that lose nothing: the rounding error of each addition is carried
// along (Kahan 1965, in Neumaier's form). An infinite or NaN total stays as it is.
struct Sum { float total, carry; };

Sum sum_start() { return Sum(0.0, 0.0); }
void sum_add(inout Sum s, float x) {
    precise float t = s.total + x;
    precise float rest = abs(s.total) >= abs(x) ? (s.total - t) + x : (x - t) + s.total;
    precise float carry = s.carry + rest;
    s.total = t;
    s.carry = carry;
}
float sum_total(Sum s) {
    bool finite = (floatBitsToUint(s.total) & 0x7f800000u) != 0x7f800000u;
    return finite ? s.total + s.carry : s.total;
}
