// GENIE's step over one chunk of a tensor. Compiled once per instruction set, with KERNEL the name of its entry; all
// builds draw the same masks bit for bit. Nothing here may be shared between the builds: no inline function with a
// name that others see, no template of the standard library.
//
// Source of the rule: rule.py beside this folder. Source of the random stream: stream.py.

#include <cstdint>
#include <cstring>

#if defined(__AVX2__) || defined(__SSE2__)
#include <immintrin.h>
#endif

#include "genie.h"

namespace shiftproof {
namespace {

// Vectors of the processor's own width: compilers break up wider ones element by element.
#if defined(__AVX512F__)
constexpr int kBytes = 64;
#elif defined(__AVX2__)
constexpr int kBytes = 32;
#else
constexpr int kBytes = 16;
#endif

using F32 = float __attribute__((vector_size(kBytes)));
using I32 = int32_t __attribute__((vector_size(kBytes)));
using U32 = uint32_t __attribute__((vector_size(kBytes)));
using U64 = uint64_t __attribute__((vector_size(kBytes)));
using F64 = double __attribute__((vector_size(kBytes)));
using U16 = uint16_t __attribute__((vector_size(kBytes)));
using HalfF32 = float __attribute__((vector_size(kBytes / 2)));
using HalfU32 = uint32_t __attribute__((vector_size(kBytes / 2)));
using HalfU16 = uint16_t __attribute__((vector_size(kBytes / 2)));
using I16 = int16_t __attribute__((vector_size(kBytes)));
using HalfI16 = int16_t __attribute__((vector_size(kBytes / 2)));

struct BFloat16 {
  uint16_t bits;
};

constexpr int kLanes = kBytes / 4;
constexpr int kWide = kBytes / 8;  // lanes of 64 bits
constexpr int kVectors = kGroup / kLanes;
constexpr float kFloor = 1e-8f;
// From here on tanh is 1 in float32, so an element whose inverse variance is above has no noise.
constexpr float kNoisyAbove = 1 / 9.011f;  // variances

[[gnu::always_inline]] inline F32 splat(float x) { return x - F32{}; }
[[gnu::always_inline]] inline I32 splat(int32_t x) { return x - I32{}; }
[[gnu::always_inline]] inline F32 choose(I32 where, F32 a, F32 b) { return where ? a : b; }
[[gnu::always_inline]] inline F32 absolute(F32 x) { return (F32)((I32)x & 0x7fffffff); }

[[gnu::always_inline]] inline bool any_above(F32 x, float limit) {
#if defined(__AVX512F__)
  return _mm512_cmp_ps_mask((__m512)x, _mm512_set1_ps(limit), _CMP_GT_OQ) != 0;
#elif defined(__AVX2__)
  return _mm256_movemask_ps((__m256)(x > limit)) != 0;
#elif defined(__SSE2__)
  return _mm_movemask_ps((__m128)(x > limit)) != 0;
#else
  int32_t all = 0;
  for (int i = 0; i < kLanes; ++i) all |= x[i] > limit;
  return all != 0;
#endif
}

[[gnu::always_inline]] inline F32 square_root(F32 x) {
#if defined(__AVX512F__)
  return (F32)_mm512_sqrt_ps((__m512)x);
#elif defined(__AVX2__)
  return (F32)_mm256_sqrt_ps((__m256)x);
#elif defined(__SSE2__)
  return (F32)_mm_sqrt_ps((__m128)x);
#else
  F32 root;
  for (int i = 0; i < kLanes; ++i) root[i] = __builtin_sqrtf(x[i]);
  return root;
#endif
}

// ---------------------------------------------------------------------------------------------- memory

[[gnu::always_inline]] inline F32 load(const float* p) {
  F32 x;
  std::memcpy(&x, p, sizeof x);
  return x;
}

[[gnu::always_inline]] inline F32 load(const BFloat16* p) {
  HalfU16 bits;
  std::memcpy(&bits, p, sizeof bits);
  return (F32)(__builtin_convertvector(bits, U32) << 16);
}

[[gnu::always_inline]] inline void store(float* p, F32 x) { std::memcpy(p, &x, sizeof x); }

[[gnu::always_inline]] inline void store_high_halves(BFloat16* p, U32 bits) {
  const HalfU16 high = __builtin_convertvector(bits >> 16, HalfU16);
  std::memcpy(p, &high, sizeof high);
}

[[gnu::always_inline]] inline void store(BFloat16* p, F32 x) {  // to the nearest, ties to even
  const U32 bits = (U32)x;
  const U32 rounded = bits + 0x7fffu + ((bits >> 16) & 1u);
  store_high_halves(p, (U32)((x == x) ? (I32)rounded : splat(int32_t{0x7fc00000})));
}

// Adds 16 random bits below the last bit that is kept and cuts; what is not finite stays as it is.
[[gnu::always_inline]] inline F32 round_stochastically(F32 x, U32 random) {
  const U32 bits = (U32)x;
  const I32 finite = ((I32)bits & 0x7f800000) != 0x7f800000;
  const U32 rounded = (U32)(finite ? (I32)(bits + random) : (I32)bits);
  return (F32)(rounded & 0xffff0000u);
}

// ---------------------------------------------------------------------------------------------- random numbers

[[gnu::always_inline]] inline U64 multiply_low_words(U64 a, uint32_t b) {
#if defined(__AVX512F__)
  return (U64)_mm512_mul_epu32((__m512i)a, _mm512_set1_epi64(b));
#elif defined(__AVX2__)
  return (U64)_mm256_mul_epu32((__m256i)a, _mm256_set1_epi64x(b));
#elif defined(__SSE2__)
  return (U64)_mm_mul_epu32((__m128i)a, _mm_set1_epi64x(b));
#else
  return (a & 0xffffffffu) * (uint64_t)b;
#endif
}

struct Words {
  U64 w[4];  // in the low halves of the lanes; the high ones hold rubbish
};

// The keys of Philox's rounds, as vectors in memory: making them anew for every group takes as long as the rounds.
struct Keys {
  U64 k0[10], k1[10];

  explicit Keys(const Step& s) {
    for (uint32_t i = 0; i < 10; ++i) {
      k0[i] = (uint64_t)((uint32_t)s.seed + i * 0x9E3779B9u) - U64{};
      k1[i] = (uint64_t)((uint32_t)(s.seed >> 32) + i * 0xBB67AE85u) - U64{};
    }
  }
};

// Philox4x32-10 of `chains` vectors of blocks, which are worked on side by side because one alone waits for its own
// multiplications. High halves hold rubbish: the multiplication does not read them.
template <int chains>
[[gnu::always_inline]] inline void philox(const Keys& keys, const Tensor& t, uint32_t stream,
                                          const U64 (&block)[chains], Words (&drawn)[chains]) {
  U64 c[chains][4];
  for (int i = 0; i < chains; ++i) {
    c[i][0] = block[i];
    c[i][1] = ((block[i] >> 32) & 0x0fffffffu) | ((uint64_t)stream << 28);
    c[i][2] = (uint64_t)t.position - U64{};
    c[i][3] = (uint64_t)t.step - U64{};
  }
#pragma GCC unroll 10
  for (int round = 0; round < 10; ++round) {
#pragma GCC unroll 4
    for (int i = 0; i < chains; ++i) {
      const U64 p0 = multiply_low_words(c[i][0], 0xD2511F53u), p1 = multiply_low_words(c[i][2], 0xCD9E8D57u);
      c[i][0] = (p1 >> 32) ^ (c[i][1] ^ keys.k0[round]);
      c[i][1] = p1;
      c[i][2] = (p0 >> 32) ^ (c[i][3] ^ keys.k1[round]);
      c[i][3] = p0;
    }
  }
  for (int i = 0; i < chains; ++i)
    for (int j = 0; j < 4; ++j) drawn[i].w[j] = c[i][j];
}

// Which of the 64 elements of a group are kept.
struct Keep {
#if defined(__AVX512BW__)
  uint64_t bits;
  F32 apply(int k, F32 x) const { return (F32)_mm512_maskz_mov_ps((__mmask16)(bits >> (kLanes * k)), (__m512)x); }
#else
  int16_t lanes[kGroup];  // -1 where the element is kept
  F32 apply(int k, F32 x) const {
#if defined(__AVX2__)
    const __m128i halves = _mm_loadu_si128(reinterpret_cast<const __m128i*>(lanes + kLanes * k));
    return (F32)((I32)x & (I32)_mm256_cvtepi16_epi32(halves));
#elif defined(__SSE2__)
    const __m128i halves = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(lanes + kLanes * k));
    return (F32)((I32)x & (I32)_mm_unpacklo_epi16(halves, halves));
#else
    HalfI16 halves;
    std::memcpy(&halves, lanes + kLanes * k, sizeof halves);
    return (F32)((I32)x & __builtin_convertvector(halves, I32));
#endif
  }
#endif
};

[[gnu::always_inline]] inline Keep keep_all() {
  Keep keep;
  std::memset(&keep, 0xff, sizeof keep);
  return keep;
}

// Groups whose masks are drawn together, and vectors of blocks that a mask takes.
#if defined(__AVX512F__)
constexpr int kStrip = 4;
#else
constexpr int kStrip = 1;
#endif
constexpr int kParts = 8 / kWide;
constexpr int kChains = kStrip * kParts < 4 ? kStrip * kParts : 4;

// Draws the masks of the groups that begin at element `first` of the whole, a multiple of 64.
[[gnu::always_inline]] inline void draw_masks(const Keys& keys, const Tensor& t, uint32_t threshold, int64_t first,
                                              Keep (&keep)[kStrip]) {
  // Blocks of eight elements. Even lanes are the first half: unpacking pairs of lanes then puts words in order.
#if defined(__AVX512F__)
  const U64 lane = {0, 4, 1, 5, 2, 6, 3, 7};
#elif defined(__AVX2__)
  const U64 lane = {0, 2, 1, 3};
#else
  const U64 lane = {0, 1};
#endif
#pragma GCC unroll 4
  for (int drawn = 0; drawn < kStrip * kParts; drawn += kChains) {
    U64 block[kChains];
    Words words[kChains];
    for (int i = 0; i < kChains; ++i) block[i] = lane + (uint64_t)((first >> 3) + kWide * (drawn + i));
    philox(keys, t, 0, block, words);
#pragma GCC unroll 4
    for (int i = 0; i < kChains; ++i) {
      const U64* w = words[i].w;
      const U64 low = (w[0] & 0xffffffffu) | (w[1] << 32), high = (w[2] & 0xffffffffu) | (w[3] << 32);
#if defined(__AVX512F__)
      const U64 front = __builtin_shufflevector(low, high, 0, 8, 2, 10, 4, 12, 6, 14);
      const U64 back = __builtin_shufflevector(low, high, 1, 9, 3, 11, 5, 13, 7, 15);
      const __m512i least = _mm512_set1_epi16((int16_t)threshold);
      keep[drawn + i].bits = (uint64_t)_mm512_cmpge_epu16_mask((__m512i)front, least) |
                             (uint64_t)_mm512_cmpge_epu16_mask((__m512i)back, least) << 32;
#else
#if defined(__AVX2__)
      const U64 halves[2] = {__builtin_shufflevector(low, high, 0, 4, 2, 6),
                             __builtin_shufflevector(low, high, 1, 5, 3, 7)};
#else
      const U64 halves[2] = {__builtin_shufflevector(low, high, 0, 2), __builtin_shufflevector(low, high, 1, 3)};
#endif
      for (int half = 0; half < 2; ++half) {  // unsigned halfwords, which signed comparisons see without their top bit
        const I16 kept = ((I16)halves[half] ^ INT16_MIN) > (int16_t)((threshold - 1) ^ 0x8000u);
        const int at = kBytes * (drawn + i) + kBytes / 2 * half;
        std::memcpy(keep[at / kGroup].lanes + at % kGroup, &kept, sizeof kept);
      }
#endif
    }
  }
}

// The masks of groups that are asked for one after the other.
class Masks {
 public:
  Masks(const Step& s, const Tensor& t, const Keys& keys) : threshold_(s.threshold), t_(t), keys_(keys) {
    if (!threshold_)
      for (Keep& keep : strip_) keep = keep_all();
  }
  [[gnu::always_inline]] const Keep& at(int64_t first) {
    if (!threshold_) return strip_[0];
    if (first < begin_ || first >= begin_ + kStrip * kGroup) {
      draw_masks(keys_, t_, threshold_, first, strip_);
      begin_ = first;
    }
    return strip_[(first - begin_) / kGroup];
  }

 private:
  const uint32_t threshold_;
  const Tensor& t_;
  const Keys& keys_;
  int64_t begin_ = INT64_MIN / 2;
  Keep strip_[kStrip];
};

[[gnu::always_inline]] inline void store_bytes(const Keep& keep, uint8_t* to) {
  for (int i = 0; i < kGroup; ++i) {
#if defined(__AVX512BW__)
    to[i] = (keep.bits >> i) & 1;
#else
    to[i] = keep.lanes[i] != 0;
#endif
  }
}

[[gnu::always_inline]] inline Keep load_bytes(const uint8_t* from) {
  Keep keep;
#if defined(__AVX512BW__)
  const __m512i bytes = _mm512_loadu_si512(from);
  keep.bits = _mm512_test_epi8_mask(bytes, bytes);
#else
  for (int i = 0; i < kGroup; ++i) keep.lanes[i] = from[i] ? -1 : 0;
#endif
  return keep;
}

// The words of the 16 blocks of four elements of a group: word number j of the blocks of vector i, in an order that
// `by_element` undoes.
struct BlockWords {
  U32 w[kVectors / 4][4];
};

[[gnu::always_inline]] inline BlockWords draw_words(const Keys& keys, const Tensor& t, uint32_t stream, int64_t first) {
  BlockWords words;
  for (int vector = 0; vector < kVectors / 4; ++vector) {
    U64 blocks[2];
    for (int i = 0; i < kLanes; ++i)
      blocks[i / kWide][i % kWide] = (uint64_t)((first >> 2) + vector * kLanes + kBytes / 16 * (i % 4) + i / 4);
    Words drawn[2];
    philox(keys, t, stream, blocks, drawn);
    for (int j = 0; j < 4; ++j) {
      const HalfU32 halves[2] = {__builtin_convertvector(drawn[0].w[j], HalfU32),
                                 __builtin_convertvector(drawn[1].w[j], HalfU32)};
      std::memcpy(&words.w[vector][j], halves, sizeof halves);
    }
  }
  return words;
}

#if defined(__AVX512F__)
#define UNPACK(kind, a, b) ((F32)_mm512_unpack##kind##_ps((__m512)(a), (__m512)(b)))
#define UNPACK_PAIRS(kind, a, b) ((F32)_mm512_unpack##kind##_pd((__m512d)(a), (__m512d)(b)))
#elif defined(__AVX2__)
#define UNPACK(kind, a, b) ((F32)_mm256_unpack##kind##_ps((__m256)(a), (__m256)(b)))
#define UNPACK_PAIRS(kind, a, b) ((F32)_mm256_unpack##kind##_pd((__m256d)(a), (__m256d)(b)))
#elif defined(__SSE2__)
#define UNPACK(kind, a, b) ((F32)_mm_unpack##kind##_ps((__m128)(a), (__m128)(b)))
#define UNPACK_PAIRS(kind, a, b) ((F32)_mm_unpack##kind##_pd((__m128d)(a), (__m128d)(b)))
#endif

// Stores values of blocks, one vector per place in the block, in the order of elements.
[[gnu::always_inline]] inline void store_by_element(const F32 (&v)[4], void* to) {
#if defined(UNPACK)
  const F32 a = UNPACK(lo, v[0], v[1]), b = UNPACK(lo, v[2], v[3]);
  const F32 c = UNPACK(hi, v[0], v[1]), d = UNPACK(hi, v[2], v[3]);
  const F32 rows[4] = {UNPACK_PAIRS(lo, a, b), UNPACK_PAIRS(hi, a, b), UNPACK_PAIRS(lo, c, d), UNPACK_PAIRS(hi, c, d)};
  std::memcpy(to, rows, sizeof rows);
#else
  float rows[4 * kLanes];
  for (int lane = 0; lane < kLanes; ++lane)
    for (int j = 0; j < 4; ++j) rows[4 * (kBytes / 16 * (lane % 4) + lane / 4) + j] = v[j][lane];
  std::memcpy(to, rows, sizeof rows);
#endif
}

// Coefficients of Cephes' polynomials.
constexpr float kLogarithm[] = {-1.1514610310e-1f, 1.1676998740e-1f, -1.2420140846e-1f, 1.4249322787e-1f,
                                -1.6668057665e-1f, 2.0000714765e-1f, -2.4999993993e-1f, 3.3333331174e-1f};
constexpr float kExponential[] = {1.3981999507e-3f, 8.3334519073e-3f, 4.1665795894e-2f, 1.6666665459e-1f,
                                  5.0000001201e-1f};

// Natural logarithm of numbers in (0, 1], to about one unit in the last place.
[[gnu::always_inline]] inline F32 logarithm(F32 x) {
  const I32 bits = (I32)x;
  I32 exponent = ((bits >> 23) & 0xff) - 126;
  F32 m = (F32)((bits & 0x007fffff) | 0x3f000000);
  const I32 small = m < 0.707106781186547524f;
  exponent += small;
  m = choose(small, m + m, m) - 1.0f;
  const F32 z = m * m;
  F32 y = splat(7.0376836292e-2f);
  for (const float c : kLogarithm) y = y * m + c;
  const F32 e = __builtin_convertvector(exponent, F32);
  y = y * m * z + e * -2.12194440e-4f - 0.5f * z;
  return m + y + e * 0.693359375f;
}

// e to the power of x, for abs(x) below 80, to about one unit in the last place.
[[gnu::always_inline]] inline F32 exponential(F32 x) {
  const I32 n = __builtin_convertvector(x * 1.44269504088896341f + choose(x < 0.0f, splat(-0.5f), splat(0.5f)), I32);
  const F32 whole = __builtin_convertvector(n, F32);
  const F32 r = x - whole * 0.693359375f - whole * -2.12194440e-4f;
  F32 y = splat(1.9875691500e-4f);
  for (const float c : kExponential) y = y * r + c;
  y = y * r * r + r + 1.0f;
  return y * (F32)((n + 127) << 23);
}

// Cosine and sine of 2 pi u, for u in [0, 1): the reduction to a quadrant is exact.
[[gnu::always_inline]] inline void cosine_sine(F32 u, F32& cosine, F32& sine) {
  const F32 turned = u * 4.0f;
  const I32 quadrant = __builtin_convertvector(turned + 0.5f, I32);
  const F32 x = (turned - __builtin_convertvector(quadrant, F32)) * 1.57079632679489662f;
  const F32 z = x * x;
  const F32 s = ((-1.9515295891e-4f * z + 8.3321608736e-3f) * z - 1.6666654611e-1f) * z * x + x;
  const F32 c = ((2.443315711809948e-5f * z - 1.388731625493765e-3f) * z + 4.166664568298827e-2f) * z * z - 0.5f * z + 1.0f;
  const I32 swap = (quadrant & 1) != 0;
  const F32 a = choose(swap, s, c), b = choose(swap, c, s);
  cosine = (F32)((I32)a ^ (((quadrant + 1) & 2) << 30));
  sine = (F32)((I32)b ^ ((quadrant & 2) << 30));
}

// Draws the 64 standard normal numbers of a group by Box and Muller's transformation.
[[gnu::always_inline]] inline void draw_normals(const Keys& keys, const Tensor& t, int64_t first, float* to) {
  const BlockWords words = draw_words(keys, t, 1, first);
  const auto uniform = [](U32 word) {
    return (__builtin_convertvector((I32)(word >> 9), F32) + 0.5f) * 0x1p-23f;
  };
  for (int vector = 0; vector < kVectors / 4; ++vector) {
    const U32(&w)[4] = words.w[vector];
    F32 normals[4];
    for (int pair = 0; pair < 4; pair += 2) {
      const F32 radius = square_root(-2.0f * logarithm(uniform(w[pair])));
      F32 cosine, sine;
      cosine_sine(uniform(w[pair + 1]), cosine, sine);
      normals[pair] = radius * cosine;
      normals[pair + 1] = radius * sine;
    }
    store_by_element(normals, to + 4 * kLanes * vector);
  }
}

[[gnu::always_inline]] inline void draw_rounding(const Keys& keys, const Tensor& t, int64_t first, uint32_t* to) {
  const BlockWords words = draw_words(keys, t, 2, first);
  for (int vector = 0; vector < kVectors / 4; ++vector) {
    const U32(&w)[4] = words.w[vector];
    store_by_element({(F32)w[0], (F32)w[1], (F32)w[2], (F32)w[3]}, to + 4 * kLanes * vector);
  }
}

// ---------------------------------------------------------------------------------------------- the rule

// What the rule reads, as local variables of a pass: stores cannot change them, so they stay in registers.
struct Constants {
  float beta1, beta2, signed_weight1, new_weight2, signed_penalty, shrinkage, eps, noise, lr;
  float inverse_correction, inverse_correction2, rho, inverse_rest;
  bool precondition;

  Constants(const Step& s, const Tensor& t)
      : beta1(s.beta1),
        beta2(s.beta2),
        signed_weight1(s.sign * s.new_weight1),
        new_weight2(s.new_weight2),
        signed_penalty(s.sign * s.penalty),
        shrinkage(s.shrinkage),
        eps(s.eps),
        noise(s.noise),
        lr(s.lr),
        inverse_correction(t.inverse_correction),
        inverse_correction2(t.inverse_correction2),
        rho(t.rho),
        inverse_rest(t.inverse_rest),
        precondition(s.precondition) {}
};

struct Terms {
  F32 mean, factor, variance;
};

template <Form form>
[[gnu::always_inline]] inline Terms compute_terms(const Constants& c, F32 m, F32 v) {
  const F32 mean = m * c.inverse_correction;
  if (form == kPaper) {
    const F32 square = m * m, difference = v - square;
    return {mean, choose(v > 0.0f, square / v, F32{}), choose(difference > 0.0f, difference, F32{})};
  }
  const F32 square = mean * mean;
  const F32 estimate = (v * c.inverse_correction - square) * c.inverse_rest;
  const F32 variance = choose(estimate > 0.0f, estimate, splat(kFloor));
  const F32 averaged = variance * c.rho;  // above 0 as the variance is, but for gradients below 1e-22
  const F32 signal = square + kFloor;
  return {mean, signal / (signal + averaged), variance};  // the floor keeps the divisor above 0
}

// The update of GENIEAdamW: Adam's, by the share of the squared mean in what gradients of its size average to.
[[gnu::always_inline]] inline F32 adamw_update(const Constants& c, F32 m, F32 v) {
  const F32 mean = m * c.inverse_correction, power = v * c.inverse_correction2;
  const F32 square = mean * mean, difference = power - square;
  const F32 total = square + choose(difference > 0.0f, difference, F32{}) * c.rho;
  const F32 update = mean / (square_root(power) + c.eps) * (square / total);
  return choose((power != 0.0f) & (square != 0.0f), update, F32{});  // NaN is not 0, and stays
}

// tanh(1 / variance), which is 1 - 2 / (exp(2 / variance) + 1), and below 1/4 its series, as nothing would be
// left of that difference.
[[gnu::always_inline]] inline F32 certainty(F32 variance) {
  const I32 noisy = variance > kNoisyAbove;
  const F32 x = choose(noisy, 1.0f / choose(noisy, variance, splat(1.0f)), F32{});
  const F32 y = x * x;
  const F32 series = x * (1.0f - y * (1.0f / 3 - y * (2.0f / 15 - y * (17.0f / 315 - y * (62.0f / 2835)))));
  const F32 tanh = choose(x < 0.25f, series, 1.0f - 2.0f / (exponential(2.0f * x) + 1.0f));
  return choose(noisy, tanh, splat(1.0f));
}

[[gnu::always_inline]] inline F64 widen_and_add(F32 x) {
  HalfF32 low, high;
  std::memcpy(&low, &x, sizeof low);
  std::memcpy(&high, reinterpret_cast<const char*>(&x) + sizeof low, sizeof high);
  return __builtin_convertvector(low, F64) + __builtin_convertvector(high, F64);
}

struct Sums {
  F64 weighted{}, certainty{};
  int64_t certain = 0;

  static double total(F64 x) {
    double sum = 0;
    for (int i = 0; i < kWide; ++i) sum += x[i];
    return sum;
  }
  void write(double* to) const {
    to[0] = total(weighted);
    to[1] = total(certainty) + (double)certain;
  }
};

// One group of 64 elements: the first pass. Returns which of its vectors are left to the second. `present` is 1 for the
// elements that are there and 0 for the others; null where all are.
template <Form form, class P, class M>
[[gnu::always_inline]] inline Flag first_group(const Constants& c, P* p, const P* g, M* m, M* v, const Keep& keep,
                                                  const uint32_t* rounding, Sums& sums, const float* present) {
  Flag noisy = 0;
  F32 weighted{}, certainties{};
  const bool penalized = c.signed_penalty != 0.0f;
#pragma GCC unroll 4
  for (int k = 0; k < kVectors; ++k) {
    const int at = kLanes * k;
    F32 gradient = load(g + at);  // its sign is applied where it is not squared
    if (form != kAdamW && penalized) gradient += load(p + at) * c.signed_penalty;
    F32 mean = load(m + at) * c.beta1 + gradient * c.signed_weight1;
    F32 square = load(v + at) * c.beta2 + gradient * gradient * c.new_weight2;
    if (sizeof(M) == 2) {
      U32 random;
      std::memcpy(&random, rounding + at, sizeof random);
      mean = round_stochastically(mean, random & 0xffffu);
      square = round_stochastically(square, random >> 16);
    }
    store(m + at, mean);
    store(v + at, square);
    if constexpr (form == kAdamW) {
      const F32 weights = load(p + at), update = keep.apply(k, adamw_update(c, mean, square));
      store(p + at, weights - (update * c.lr + weights * c.shrinkage));
      continue;
    }
    const Terms terms = compute_terms<form>(c, mean, square);
    F32 size = terms.factor * absolute(terms.mean);
    const bool uncertain = any_above(terms.variance, kNoisyAbove);
    if (__builtin_expect(uncertain && c.noise != 0.0f, 0)) {
      noisy |= (Flag)(1 << k);
      if (form != kPaper) {
        const F32 certain = certainty(terms.variance);
        size *= certain;
        certainties += present ? certain * load(present + at) : certain;
      }
    } else {
      sums.certain += kLanes;
      F32 update = terms.mean;
      if (c.precondition) update *= terms.factor;
      if (__builtin_expect(uncertain && c.precondition, 0)) update *= certainty(terms.variance);
      store(p + at, load(p + at) - keep.apply(k, update) * c.lr);
    }
    if (form != kPaper) weighted += size;
  }
  if (form != kPaper) sums.weighted += widen_and_add(weighted);
  if (form != kPaper && noisy) sums.certainty += widen_and_add(certainties);
  return noisy;
}

// The second pass: parameters of the vectors on which noise acts.
template <Form form, class P, class M>
[[gnu::always_inline]] inline void second_group(const Constants& c, P* p, const M* m, const M* v, const Keep& keep,
                         const float* normals, Flag noisy, float spread) {
  for (int k = 0; k < kVectors; ++k) {
    if (!(noisy >> k & 1)) continue;
    const int at = kLanes * k;
    const Terms terms = compute_terms<form>(c, load(m + at), load(v + at));
    const F32 certain = certainty(terms.variance);
    F32 update = terms.mean;
    if (c.precondition) update *= terms.factor * certain;
    const F32 deviation = form == kPaper ? square_root(terms.variance) : splat(spread);
    update += load(normals + at) * deviation * (1.0f - certain) * c.noise;
    store(p + at, load(p + at) - keep.apply(k, update) * c.lr);
  }
}

// ---------------------------------------------------------------------------------------------- chunks

// A group of which only some elements are at hand, in buffers whose other elements are 0: these count as certain.
template <class T>
struct Buffer {
  T at[kGroup];
  Buffer(const T* from, int64_t skip, int64_t length) {
    std::memset(at, 0, sizeof at);
    std::memcpy(at + skip, from, sizeof(T) * length);
  }
  void write(T* to, int64_t skip, int64_t length) const { std::memcpy(to, at + skip, sizeof(T) * length); }
};

// The random numbers of a row with the channels last, in the order of memory.
struct RowNumbers {
  uint8_t* keep = nullptr;
  float* normals = nullptr;
  uint32_t* rounding = nullptr;
  char* logical = nullptr;

  RowNumbers(int64_t size, bool with_normals, bool with_rounding) {
    const int64_t room = size + 2 * kGroup;  // groups are aligned in the whole
    logical = new char[4 * room];
    keep = new uint8_t[room];
    if (with_normals) normals = new float[room];
    if (with_rounding) rounding = new uint32_t[room];
  }
  ~RowNumbers() {
    delete[] logical;
    delete[] keep;
    delete[] normals;
    delete[] rounding;
  }
  RowNumbers(const RowNumbers&) = delete;
  RowNumbers& operator=(const RowNumbers&) = delete;

  template <class T, class Draw>
  void fill(T* to, const Tensor& t, int64_t first, Draw draw) {
    T* drawn = reinterpret_cast<T*>(logical);
    const int64_t base = first / kGroup * kGroup, size = t.channels * t.area;
    for (int64_t at = base; at < first + size; at += kGroup) draw(at, drawn + (at - base));
    const T* own = drawn + (first - base);
    for (int64_t channel = 0; channel < t.channels; ++channel)
      for (int64_t place = 0; place < t.area; ++place) to[place * t.channels + channel] = own[channel * t.area + place];
  }
};

template <Form form, class P, class M>
struct Passes {
  // Calls work(local element, first element of the group in the whole, elements to skip in it, elements at hand).
  template <class Work>
  static void over_groups(const Tensor& t, const Chunk& chunk, Work work) {
    for (int64_t at = chunk.begin; at < chunk.end;) {
      const int64_t within = at % t.run;
      int64_t left = t.run - within < chunk.end - at ? t.run - within : chunk.end - at;
      int64_t index = t.start + at / t.run * t.stride + within;
      while (left > 0) {
        const int64_t skip = index % kGroup;
        const int64_t length = kGroup - skip < left ? kGroup - skip : left;
        work(at, index - skip, skip, length);
        at += length;
        index += length;
        left -= length;
      }
    }
  }

  [[gnu::always_inline]] static Flag first_at(const Constants& c, const Tensor& t, int64_t at, int64_t skip, int64_t length, const Keep& keep,
                          const uint32_t* rounding, Sums& sums) {
    P* p = static_cast<P*>(t.param) + at;
    const P* g = static_cast<const P*>(t.grad) + at;
    M* m = static_cast<M*>(t.exp_avg) + at;
    M* v = static_cast<M*>(t.exp_avg_sq) + at;
    if (length == kGroup) return first_group<form>(c, p, g, m, v, keep, rounding, sums, nullptr);
    Buffer<P> bp(p, skip, length), bg(g, skip, length);
    Buffer<M> bm(m, skip, length), bv(v, skip, length);
    float present[kGroup];
    for (int64_t i = 0; i < kGroup; ++i) present[i] = i >= skip && i < skip + length ? 1.0f : 0.0f;
    const Flag noisy = first_group<form>(c, bp.at, bg.at, bm.at, bv.at, keep, rounding, sums, present);
    bp.write(p, skip, length);
    bm.write(m, skip, length);
    bv.write(v, skip, length);
    for (int64_t i = 0; i < kGroup; ++i)  // elements that are not there count as certain in vectors without noise
      if (present[i] == 0.0f && !(noisy >> (i / kLanes) & 1)) --sums.certain;
    return noisy;
  }

  static void second_at(const Constants& c, const Tensor& t, int64_t at, int64_t skip, int64_t length, const Keep& keep,
                        const float* normals, Flag noisy, float spread) {
    P* p = static_cast<P*>(t.param) + at;
    const M* m = static_cast<const M*>(t.exp_avg) + at;
    const M* v = static_cast<const M*>(t.exp_avg_sq) + at;
    if (length == kGroup) {
      second_group<form>(c, p, m, v, keep, normals, noisy, spread);
      return;
    }
    Buffer<P> bp(p, skip, length);
    const Buffer<M> bm(m, skip, length), bv(v, skip, length);
    second_group<form>(c, bp.at, bm.at, bv.at, keep, normals, noisy, spread);
    bp.write(p, skip, length);
  }

  static void first(const Step& s, const Tensor& t, Chunk& chunk, Flag* flags, float) {
    const Constants c(s, t);
    const Keys keys(s);
    Sums sums;
    Flag* flag = flags + chunk.flags;
    Flag any_noisy = 0;
    if (t.channels) {
      const int64_t size = t.channels * t.area;
      RowNumbers numbers(size, false, sizeof(M) == 2);
      for (int64_t row = chunk.begin; row < chunk.end; row += size) {
        draw_row(s, t, keys, row, numbers, false);
        for (int64_t at = 0; at < size; at += kGroup) {
          const int64_t length = size - at < kGroup ? size - at : kGroup;
          const Keep keep = s.threshold ? load_bytes(numbers.keep + at) : keep_all();
          *flag = first_at(c, t, row + at, 0, length, keep, numbers.rounding + at, sums);
          any_noisy |= *flag++;
        }
      }
    } else {
      Masks masks(s, t, keys);
      over_groups(t, chunk, [&](int64_t at, int64_t base, int64_t skip, int64_t length) {
        uint32_t rounding[kGroup];
        if (sizeof(M) == 2) draw_rounding(keys, t, base, rounding);
        *flag = first_at(c, t, at, skip, length, masks.at(base), rounding, sums);
        any_noisy |= *flag++;
      });
    }
    sums.write(chunk.sums);
    chunk.noisy = any_noisy != 0;
  }

  static void second(const Step& s, const Tensor& t, Chunk& chunk, Flag* flags, float spread) {
    const Constants c(s, t);
    const Keys keys(s);
    const Flag* flag = flags + chunk.flags;
    if (t.channels) {
      const int64_t size = t.channels * t.area;
      RowNumbers numbers(size, true, false);
      for (int64_t row = chunk.begin; row < chunk.end; row += size) {
        draw_row(s, t, keys, row, numbers, true);
        for (int64_t at = 0; at < size; at += kGroup, ++flag) {
          if (!*flag) continue;
          const int64_t length = size - at < kGroup ? size - at : kGroup;
          const Keep keep = s.threshold ? load_bytes(numbers.keep + at) : keep_all();
          second_at(c, t, row + at, 0, length, keep, numbers.normals + at, *flag, spread);
        }
      }
      return;
    }
    Masks masks(s, t, keys);
    over_groups(t, chunk, [&](int64_t at, int64_t base, int64_t skip, int64_t length) {
      if (const Flag noisy = *flag++) {
        float normals[kGroup];
        draw_normals(keys, t, base, normals);
        second_at(c, t, at, skip, length, masks.at(base), normals, noisy, spread);
      }
    });
  }

  static void draw_row(const Step& s, const Tensor& t, const Keys& keys, int64_t row, RowNumbers& numbers,
                       bool with_normals) {
    const int64_t first = t.start + row;
    Masks masks(s, t, keys);
    if (s.threshold)
      numbers.fill(numbers.keep, t, first, [&](int64_t at, uint8_t* to) { store_bytes(masks.at(at), to); });
    if (with_normals)
      numbers.fill(numbers.normals, t, first, [&](int64_t at, float* to) { draw_normals(keys, t, at, to); });
    if (numbers.rounding)
      numbers.fill(numbers.rounding, t, first, [&](int64_t at, uint32_t* to) { draw_rounding(keys, t, at, to); });
  }
};

template <Form form, class P>
void choose_moments(const Step& s, const Tensor& t, Chunk& chunk, Flag* flags, float spread, bool second) {
  if (s.moment_type == kBFloat16)
    (second ? Passes<form, P, BFloat16>::second : Passes<form, P, BFloat16>::first)(s, t, chunk, flags, spread);
  else
    (second ? Passes<form, P, float>::second : Passes<form, P, float>::first)(s, t, chunk, flags, spread);
}

template <Form form>
void choose_params(const Step& s, const Tensor& t, Chunk& chunk, Flag* flags, float spread, bool second) {
  if (s.param_type == kBFloat16)
    choose_moments<form, BFloat16>(s, t, chunk, flags, spread, second);
  else
    choose_moments<form, float>(s, t, chunk, flags, spread, second);
}

void choose_form(const Step& s, const Tensor& t, Chunk& chunk, Flag* flags, float spread, bool second) {
  if (s.form == kPaper)
    choose_params<kPaper>(s, t, chunk, flags, spread, second);
  else if (s.form == kReleased)
    choose_params<kReleased>(s, t, chunk, flags, spread, second);
  else
    choose_params<kAdamW>(s, t, chunk, flags, spread, second);
}

void first_pass(const Step& s, const Tensor& t, Chunk& chunk, Flag* flags, float spread) {
  choose_form(s, t, chunk, flags, spread, false);
}

void second_pass(const Step& s, const Tensor& t, Chunk& chunk, Flag* flags, float spread) {
  choose_form(s, t, chunk, flags, spread, true);
}

}  // namespace

Kernel KERNEL() { return {first_pass, second_pass}; }

}  // namespace shiftproof
