// CUDA's vector types. Copying one from or to an address that it must not have is a finding, as it is a fault on a GPU.

#ifndef TFTOOLKIT_EMULATION_VECTOR_TYPES_H_
#define TFTOOLKIT_EMULATION_VECTOR_TYPES_H_

#include <cstddef>
#include <cstdint>

namespace tftoolkit::emulation {

// A finding unless `address` is a multiple of `alignment`.
void CheckAligned(const void* address, size_t alignment);

}  // namespace tftoolkit::emulation

struct uint3 {
  unsigned x, y, z;
};

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
  constexpr dim3(uint3 other) : x(other.x), y(other.y), z(other.z) {}
};

// Compilers split a copy of a structure into copies of its members, whose own alignment says less.
#define TK_VECTOR_COPIES(Name)                                   \
  Name() = default;                                              \
  Name(const Name& other) { *this = other; }                     \
  Name& operator=(const Name& other) {                           \
    ::tftoolkit::emulation::CheckAligned(&other, alignof(Name)); \
    ::tftoolkit::emulation::CheckAligned(this, alignof(Name));   \
    return Assign(other);                                        \
  }

#define TK_VECTOR_2(Name, T)           \
  struct alignas(2 * sizeof(T)) Name { \
    T x, y;                            \
    Name(T x, T y) : x(x), y(y) {}     \
    TK_VECTOR_COPIES(Name)             \
                                       \
   private:                            \
    Name& Assign(const Name& other) {  \
      x = other.x, y = other.y;        \
      return *this;                    \
    }                                  \
  };                                   \
  inline Name make_##Name(T x, T y) { return {x, y}; }

#define TK_VECTOR_4(Name, T, Alignment)                   \
  struct alignas(Alignment) Name {                        \
    T x, y, z, w;                                         \
    Name(T x, T y, T z, T w) : x(x), y(y), z(z), w(w) {}  \
    TK_VECTOR_COPIES(Name)                                \
                                                          \
   private:                                               \
    Name& Assign(const Name& other) {                     \
      x = other.x, y = other.y, z = other.z, w = other.w; \
      return *this;                                       \
    }                                                     \
  };                                                      \
  inline Name make_##Name(T x, T y, T z, T w) { return {x, y, z, w}; }

TK_VECTOR_2(char2, signed char)
TK_VECTOR_2(uchar2, unsigned char)
TK_VECTOR_2(short2, short)
TK_VECTOR_2(ushort2, unsigned short)
TK_VECTOR_2(int2, int)
TK_VECTOR_2(uint2, unsigned)
TK_VECTOR_2(longlong2, long long)
TK_VECTOR_2(ulonglong2, unsigned long long)
TK_VECTOR_2(float2, float)
TK_VECTOR_2(double2, double)
TK_VECTOR_4(char4, signed char, 4)
TK_VECTOR_4(uchar4, unsigned char, 4)
TK_VECTOR_4(short4, short, 8)
TK_VECTOR_4(ushort4, unsigned short, 8)
TK_VECTOR_4(int4, int, 16)
TK_VECTOR_4(uint4, unsigned, 16)
TK_VECTOR_4(float4, float, 16)

#undef TK_VECTOR_2
#undef TK_VECTOR_4
#undef TK_VECTOR_COPIES

#endif  // TFTOOLKIT_EMULATION_VECTOR_TYPES_H_
