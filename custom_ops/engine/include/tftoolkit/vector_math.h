// Elementary functions of vectors of TK_LANES floats; once for each instruction set, behind gemm.h, whose types it
// uses.

constexpr float kLog2E = 1.44269504088896340736f;
constexpr float kMinusInfinity = -__builtin_huge_valf();

// 2^x for x <= 0 (of larger x anything) with an error of 1 ulp; 0 from -127 on down, NaN for NaN. x = n + f with |f| <=
// 1/2; of 2^f a polynomial of degree 6 (fitted, relative error 2^-29), of 2^n the exponent's bits.
TK_INLINE Vector Exp2(Vector x) {
  x = x < -127.0f ? Broadcast(-127.0f) : x;
  const Vector shifted = x + 12582912.0f;  // 1.5 * 2^23: rounds to a whole number, which the low bits then hold
  const Vector f = x - (shifted - 12582912.0f);
  Vector y = f * 1.5353361959569156e-4f + 1.3398875016719103e-3f;
  y = y * f + 9.61843691766262e-3f;
  y = y * f + 5.5503323674201965e-2f;
  y = y * f + 2.4022647738456726e-1f;
  y = y * f + 6.931471824645996e-1f;
  y = y * f + 1.0f;
  BitsVector whole, bits;
  std::memcpy(&whole, &shifted, sizeof whole);
  std::memcpy(&bits, &y, sizeof bits);
  bits += whole << 23;
  std::memcpy(&y, &bits, sizeof y);
  return x == x ? y : x;  // the exponent's bits may make a number of a NaN
}

// For small x a fitted odd polynomial, so that nothing cancels; else 1 - 2 / (e^2x + 1). An error of 2 ulp.
TK_INLINE Vector Tanh(Vector x) {
  const Vector size = x < 0.0f ? -x : x;
  const Vector square = x * x;
  Vector p = square * -5.704984977841377e-3f + 2.0639084279537201e-2f;
  p = p * square + -5.373971536755562e-2f;
  p = p * square + 1.3331441581249237e-1f;
  p = p * square + -3.333328068256378e-1f;
  const Vector small = x + x * square * p;
  const Vector power = Exp2(size * (-2.0f * kLog2E));  // e^-2|x|
  const Vector large = (1.0f - power) / (1.0f + power);
  return size < 0.625f ? small : (x < 0.0f ? -large : large);
}
