// GENIE's operators for the CPU, through the stable ABI of LibTorch: one binary for every Python and every torch from
// 2.10 on.

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <cstring>
#include <vector>

#include "checks.h"
#include "genie.h"

namespace {

using shiftproof::Chunk;
using shiftproof::Kernel;
using shiftproof::require;
using shiftproof::StableTensor;
using shiftproof::Step;
using torch::headeronly::ScalarType;

// The instruction sets that this processor has and that the operating system saves, best last.
int64_t best_instruction_set() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512vl"))
    return 2;
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return 1;
#endif
  return 0;
}

Kernel kernel_of(int64_t instruction_set) {
#if defined(__x86_64__)
  if (instruction_set == 2) return shiftproof::avx512_kernel();
  if (instruction_set == 1) return shiftproof::avx2_kernel();
#endif
  return shiftproof::baseline_kernel();
}

// Columns of the tables of tensors: in order, the fields of shiftproof::Tensor behind numel.
constexpr int64_t kNumbers = 7;
constexpr int64_t kScalars = 4;

// Both passes: `first` fills sums (tensors, 2) and flags, the second reads spreads (tensors,) and flags.
int64_t run(bool second, const Step& step, const std::vector<StableTensor>& params,
            const std::vector<StableTensor>& grads, const std::vector<StableTensor>& exp_avgs,
            const std::vector<StableTensor>& exp_avg_sqs, const StableTensor& numbers, const StableTensor& scalars,
            const StableTensor& values, const StableTensor& flags_tensor, int64_t instruction_set) {
  const int64_t count = (int64_t)params.size();
  require((second || (int64_t)grads.size() == count) && (int64_t)exp_avgs.size() == count &&
              (int64_t)exp_avg_sqs.size() == count,
          "the lists of tensors differ in length");
  shiftproof::check_table(numbers, ScalarType::Long, count * kNumbers, "numbers");
  shiftproof::check_table(scalars, ScalarType::Double, count * kScalars, "scalars");
  shiftproof::check_table(values, ScalarType::Double, second ? count : count * 2, second ? "spreads" : "sums");
  shiftproof::check_table(flags_tensor, ScalarType::Short, flags_tensor.numel(), "flags");
  require(0 <= instruction_set && instruction_set <= best_instruction_set(), "this processor lacks the instructions");
  require(shiftproof::kPaper <= step.form && step.form <= shiftproof::kAdamW, "there is no such form");
  require(step.threshold <= 65536, "the threshold of the mask is above 65536");
  const auto* number = static_cast<const int64_t*>(numbers.const_data_ptr());
  const auto* scalar = static_cast<const double*>(scalars.const_data_ptr());
  auto* value = static_cast<double*>(values.mutable_data_ptr());
  auto* flags = static_cast<shiftproof::Flag*>(flags_tensor.mutable_data_ptr());
  std::vector<shiftproof::Tensor> tensors;
  std::vector<Chunk> chunks;
  int64_t used = 0, elements = 0;
  for (size_t i = 0; i < params.size(); ++i, number += kNumbers, scalar += kScalars) {
    shiftproof::check_tensors(step, params[i], second ? nullptr : &grads[i], exp_avgs[i], exp_avg_sqs[i], number);
    const shiftproof::Tensor t{params[i].mutable_data_ptr(),
                               second ? nullptr : grads[i].const_data_ptr(),
                               exp_avgs[i].mutable_data_ptr(),
                               exp_avg_sqs[i].mutable_data_ptr(),
                               params[i].numel(),
                               number[0],
                               number[1],
                               number[2],
                               number[3],
                               number[4],
                               (uint32_t)number[5],
                               (uint32_t)number[6],
                               (float)scalar[0],
                               (float)scalar[1],
                               (float)scalar[2],
                               (float)scalar[3]};
    tensors.push_back(t);
    elements += t.numel;
    int64_t size = shiftproof::kChunk;
    if (t.channels) {
      const int64_t whole = t.channels * t.area;
      size = (size + whole - 1) / whole * whole;
    }
    for (int64_t begin = 0; begin < t.numel; begin += size) {
      const int64_t end = begin + size < t.numel ? begin + size : t.numel;
      chunks.push_back({(int64_t)i, begin, end, used, {0, 0}, false});
      used += shiftproof::count_groups(t, begin, end);
    }
  }
  require(used <= flags_tensor.numel(), "the flags of the groups do not fit their tensor");
  const Kernel kernel = kernel_of(instruction_set);
  const auto pass = second ? kernel.second : kernel.first;
  // Few elements are sooner stepped than shared out among threads.
  const int64_t grain = chunks.empty() ? 1 : 2 * shiftproof::kChunk / (elements / (int64_t)chunks.size() + 1) + 1;
  torch::stable::parallel_for(0, (int64_t)chunks.size(), grain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      Chunk& chunk = chunks[i];
      pass(step, tensors[chunk.tensor], chunk, flags, second ? (float)value[chunk.tensor] : 0.0f);
    }
  });
  if (second) return 0;
  int64_t noisy = 0;
  for (const Chunk& chunk : chunks) {  // in order, so that the number of threads changes nothing
    for (int j = 0; j < 2; ++j) value[2 * chunk.tensor + j] += chunk.sums[j];
    noisy += chunk.noisy;
  }
  return noisy;
}

Step make_step(bool low_params, bool low_moments, int64_t form, double lr, double beta1, double beta2, double eps,
               double penalty, double shrinkage, bool maximize, double noise, int64_t threshold, bool precondition,
               int64_t seed) {
  return {(shiftproof::Form)form,
          low_params ? shiftproof::kBFloat16 : shiftproof::kFloat32,
          low_moments ? shiftproof::kBFloat16 : shiftproof::kFloat32,
          (float)lr,
          (float)beta1,
          (float)beta2,
          (float)(1 - beta1),
          (float)(1 - beta2),
          (float)eps,
          (float)penalty,
          (float)shrinkage,
          maximize ? -1.0f : 1.0f,
          (float)noise,
          (uint32_t)threshold,
          precondition,
          (uint64_t)seed};
}

int64_t first(const std::vector<StableTensor> params, const std::vector<StableTensor> grads,
              const std::vector<StableTensor> exp_avgs, const std::vector<StableTensor> exp_avg_sqs,
              const StableTensor numbers, const StableTensor scalars, const StableTensor sums, const StableTensor flags,
              bool low_params, bool low_moments, int64_t form, double lr, double beta1, double beta2, double eps,
              double penalty, double shrinkage, bool maximize, double noise, int64_t threshold, bool precondition,
              int64_t seed, int64_t instruction_set) {
  const Step step = make_step(low_params, low_moments, form, lr, beta1, beta2, eps, penalty, shrinkage, maximize, noise,
                              threshold, precondition, seed);
  return run(false, step, params, grads, exp_avgs, exp_avg_sqs, numbers, scalars, sums, flags, instruction_set);
}

void second(const std::vector<StableTensor> params, const std::vector<StableTensor> exp_avgs,
            const std::vector<StableTensor> exp_avg_sqs, const StableTensor numbers, const StableTensor scalars,
            const StableTensor spreads, const StableTensor flags, bool low_params, bool low_moments, int64_t form,
            double lr, double beta1, double beta2, double eps, double penalty, double shrinkage, bool maximize,
            double noise, int64_t threshold, bool precondition, int64_t seed, int64_t instruction_set) {
  const Step step = make_step(low_params, low_moments, form, lr, beta1, beta2, eps, penalty, shrinkage, maximize, noise,
                              threshold, precondition, seed);
  run(true, step, params, {}, exp_avgs, exp_avg_sqs, numbers, scalars, spreads, flags, instruction_set);
}

}  // namespace

#define OPTIONS                                                                                             \
  "bool low_params, bool low_moments, int form, float lr, float beta1, float beta2, float eps, "            \
  "float penalty, float shrinkage, bool maximize, float noise, int threshold, bool precondition, int seed, " \
  "int instruction_set"

STABLE_TORCH_LIBRARY(shiftproof, m) {
  m.def(
      "genie_first_pass(Tensor(a!)[] params, Tensor[] grads, Tensor(b!)[] exp_avgs, Tensor(c!)[] exp_avg_sqs, "
      "Tensor numbers, Tensor scalars, Tensor(d!) sums, Tensor(e!) flags, " OPTIONS ") -> int");
  m.def(
      "genie_second_pass(Tensor(a!)[] params, Tensor[] exp_avgs, Tensor[] exp_avg_sqs, Tensor numbers, "
      "Tensor scalars, Tensor spreads, Tensor flags, " OPTIONS ") -> ()");
  m.def("genie_best_instruction_set() -> int");
}

STABLE_TORCH_LIBRARY_IMPL(shiftproof, CPU, m) {
  m.impl("genie_first_pass", TORCH_BOX(&first));
  m.impl("genie_second_pass", TORCH_BOX(&second));
}

STABLE_TORCH_LIBRARY_IMPL(shiftproof, CompositeExplicitAutograd, m) {
  m.impl("genie_best_instruction_set", TORCH_BOX(&best_instruction_set));
}
