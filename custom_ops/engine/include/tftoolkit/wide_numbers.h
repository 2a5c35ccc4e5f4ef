// Positive numbers of any size, for probabilities of long sequences: once for each instruction set, behind gemm.h and
// vector_math.h.
//
// A product of thousands of probabilities leaves the range of floats, and of neighbours one may be e^200 of another, so
// that no common scale helps. Logarithms have the range but cost an exponential for each term, a logarithm for each
// sum, and digits: at a loss of 1000 the last one is worth 6e-5. Here a number is mantissa * 2^exponent, both floats,
// the mantissa in [1, 2), the exponent whole: a sum of three costs some 25 vector instructions, none of them a table or
// a division, and its error is that of float sums whatever the size. From 2^24 on exponents are rounded, as
// logarithms of that size would be.

// Zero is an exponent of minus infinity, with any finite mantissa.
struct Wide {
  Vector mantissa, exponent;
};

TK_INLINE BitsVector BitsOf(Vector x) {
  BitsVector bits;
  std::memcpy(&bits, &x, sizeof bits);
  return bits;
}

TK_INLINE Vector FloatsOf(BitsVector bits) {
  Vector x;
  std::memcpy(&x, &bits, sizeof x);
  return x;
}

// 2^e for a whole e up to 127; 0 from -127 on down and for NaN, which is what infinity minus infinity makes of zeros.
TK_INLINE Vector PowerOf2(Vector e) {
  const Vector within = e > -127.0f ? e : Broadcast(-127.0f);
  return FloatsOf(BitsOf(within + (12582912.0f + 127.0f)) << 23);  // 1.5 * 2^23: the low bits hold the whole number
}

// From any positive mantissa. Of a NaN, which stands beside an exponent of minus infinity only, it makes a number.
TK_INLINE Wide Normal(Vector mantissa, Vector exponent) {
  const BitsVector bits = BitsOf(mantissa);
  const Vector field = FloatsOf((bits >> 23) | 0x4b000000u) - (8388608.0f + 127.0f);  // 2^23 + field, as a float
  return {FloatsOf((bits & 0x007fffffu) | 0x3f800000u), exponent + field};
}

TK_INLINE Wide Times(Wide a, Wide b) { return Normal(a.mantissa * b.mantissa, a.exponent + b.exponent); }

TK_INLINE Vector Larger(Vector a, Vector b) { return a > b ? a : b; }

// (a + b) * factor and (a + b + c) * factor.
TK_INLINE Wide SumTimes(Wide a, Wide b, Wide factor) {
  const Vector top = Larger(a.exponent, b.exponent);
  const Vector sum = a.mantissa * PowerOf2(a.exponent - top) + b.mantissa * PowerOf2(b.exponent - top);
  return Normal(sum * factor.mantissa, top + factor.exponent);
}

TK_INLINE Wide SumTimes(Wide a, Wide b, Wide c, Wide factor) {
  const Vector top = Larger(Larger(a.exponent, b.exponent), c.exponent);
  const Vector sum = a.mantissa * PowerOf2(a.exponent - top) + b.mantissa * PowerOf2(b.exponent - top) +
                     c.mantissa * PowerOf2(c.exponent - top);
  return Normal(sum * factor.mantissa, top + factor.exponent);
}

// e^x with an error of 2 ulp; the mantissa is between 0.7 and 1.5. Minus infinity gives zero, and so does NaN, which
// is found in sums over all classes: an exponent of NaN would be taken or left as operands stand.
TK_INLINE Wide WideExp(Vector x) {
  const Vector shifted = x * kLog2E + 12582912.0f;
  const Vector k = shifted - 12582912.0f;
  const Vector r = (x - k * 0.693359375f) + k * 2.12194440e-4f;
  Vector p = r * 1.9875691500e-4f + 1.3981999507e-3f;  // Moshier's Cephes library, as in math.h
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  return {p, x == x ? k : Broadcast(kMinusInfinity)};
}

// One such number as a double and a whole power of two.
struct WideScalar {
  double mantissa, exponent;
};

inline WideScalar Add(WideScalar a, WideScalar b) {
  const double top = a.exponent > b.exponent ? a.exponent : b.exponent;
  if (top == static_cast<double>(kMinusInfinity)) return {0, 0};
  return {a.mantissa * std::exp2(a.exponent - top) + b.mantissa * std::exp2(b.exponent - top), top};
}

inline double Log(WideScalar a) { return std::log(a.mantissa) + a.exponent * 0.693147180559945309417; }
