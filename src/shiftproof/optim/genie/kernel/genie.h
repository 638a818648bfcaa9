// What the operators (operators.cpp) and the builds of the kernel (genie.cpp) share.
#pragma once

#include <cstdint>

namespace shiftproof {

enum Form : int64_t { kPaper, kReleased, kAdamW };
enum Type : int64_t { kFloat32, kBFloat16 };

using Flag = uint16_t;  // of a group: bit k is set where noise acts on its vector number k

constexpr int64_t kGroup = 64;     // elements that are worked on at once; a multiple of the blocks of every stream
constexpr int64_t kChunk = 16384;  // elements of one task of a thread

// A parameter. Its local elements lie in memory in logical order (channels == 0), as `run` consecutive elements of the
// whole at a time, or with the channels last (channels != 0): rows of area x channels, logically channels x area.
struct Tensor {
  void* param;
  const void* grad;
  void* exp_avg;
  void* exp_avg_sq;
  int64_t numel;
  int64_t run;     // local elements that are consecutive in the whole
  int64_t stride;  // from the start of a run to that of the next, in the whole
  int64_t start;   // of the first run, in the whole
  int64_t channels;
  int64_t area;
  uint32_t position;
  uint32_t step;
  float inverse_correction;  // 1 / (1 - beta1^step)
  float inverse_correction2;  // 1 / (1 - beta2^step)
  float rho;                 // variance of the moving average over that of one gradient
  float inverse_rest;        // 1 / (1 - rho); 0 where the variance is not known
};

struct Step {
  Form form;
  Type param_type;
  Type moment_type;
  float lr;  // divided by the kept fraction where the form rescales
  float beta1;
  float beta2;
  float new_weight1;  // 1 - beta1
  float new_weight2;  // 1 - beta2
  float eps;
  float penalty;    // weight decay that is added to the gradient
  float shrinkage;  // lr times the weight decay that is not
  float sign;  // -1 to ascend
  float noise;
  uint32_t threshold;  // halfwords from which elements are kept
  bool precondition;
  uint64_t seed;
};

// A part of a tensor, for one thread.
struct Chunk {
  int64_t tensor;
  int64_t begin;  // local elements; with the channels last, whole rows
  int64_t end;
  int64_t flags;  // where its groups' flags begin
  double sums[2];  // factor * abs(mean), certainty
  bool noisy;
};

// The first pass updates the moments and every vector of parameters on which no noise acts; the second the others.
using Pass = void (*)(const Step&, const Tensor&, Chunk&, Flag* flags, float spread);

struct Kernel {
  Pass first;
  Pass second;
};

// The groups that a chunk of consecutive runs touches: groups are aligned in the whole, so that the ends are partial.
inline int64_t count_groups(const Tensor& t, int64_t begin, int64_t end) {
  if (t.channels) return (end - begin) / (t.channels * t.area) * ((t.channels * t.area + kGroup - 1) / kGroup);
  int64_t groups = 0;
  while (begin < end) {
    const int64_t within = begin % t.run;
    const int64_t length = (t.run - within < end - begin) ? t.run - within : end - begin;
    const int64_t first = t.start + begin / t.run * t.stride + within;
    groups += (first + length - 1) / kGroup - first / kGroup + 1;
    begin += length;
  }
  return groups;
}

Kernel baseline_kernel();
#if defined(__x86_64__)
Kernel avx2_kernel();
Kernel avx512_kernel();
#endif

}  // namespace shiftproof
