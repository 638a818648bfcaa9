// What stands between Python and the kernel's pointers: whoever calls the operators, and with whatever, the kernel
// neither reads nor writes beyond a tensor.
#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/tensor.h>

#include <stdexcept>
#include <string>

#include "genie.h"

namespace shiftproof {

using StableTensor = torch::stable::Tensor;

inline void require(bool held, const char* otherwise) {
  if (!held) throw std::runtime_error(std::string("GENIE's CPU kernel: ") + otherwise);
}

inline void require_of(bool held, const char* name, const char* otherwise) {
  if (!held) throw std::runtime_error(std::string("GENIE's CPU kernel: ") + name + " " + otherwise);
}

// Whether memory has no gaps and its order is the logical one or, with channels, has the channels last.
inline bool is_dense(const StableTensor& t, bool channels_last) {
  if (t.numel() == 0) return true;
  const auto sizes = t.sizes(), strides = t.strides();
  const int64_t dims = (int64_t)sizes.size();
  if (channels_last && dims != 4) return false;
  constexpr int64_t kLast[] = {1, 3, 2, 0};  // from the innermost in memory
  int64_t stride = 1;
  for (int64_t i = 0; i < dims; ++i) {
    const int64_t dim = channels_last ? kLast[i] : dims - 1 - i;
    if (sizes[dim] != 1 && strides[dim] != stride) return false;
    stride *= sizes[dim];
  }
  return true;
}

// Whether all elements of a dense tensor lie in its storage, which `resize_` may have shrunk under it.
inline bool is_backed(const StableTensor& t) {
  if (t.numel() == 0) return true;
  int64_t bytes = 0;
  if (aoti_torch_get_storage_size(t.get(), &bytes) != AOTI_TORCH_SUCCESS) return false;
  return t.storage_offset() >= 0 && (t.storage_offset() + t.numel()) * (int64_t)t.element_size() <= bytes;
}

inline void check_table(const StableTensor& t, torch::headeronly::ScalarType type, int64_t numel, const char* name) {
  require_of(t.is_cpu(), name, "are not on the CPU");
  require_of(t.scalar_type() == type, name, "are of another type");
  require_of(t.numel() == numel, name, "are not as many as the tensors");
  require_of(is_dense(t, false) && is_backed(t), name, "are not contiguous");
}

inline void check_tensor(const StableTensor& t, const StableTensor& param, Type type, bool channels_last,
                         const char* name) {
  using torch::headeronly::ScalarType;
  require_of(t.is_cpu(), name, "is not on the CPU");
  require_of(t.scalar_type() == (type == kBFloat16 ? ScalarType::BFloat16 : ScalarType::Float), name,
             "is of another type");
  const auto sizes = t.sizes(), expected = param.sizes();
  bool equal = sizes.size() == expected.size();
  for (size_t i = 0; equal && i < sizes.size(); ++i) equal = sizes[i] == expected[i];
  require_of(equal, name, "has not the parameter's shape");
  require_of(is_dense(t, channels_last), name, "lies in memory in another order");
  require_of(is_backed(t), name, "has lost its memory");
}

// `numbers` are the tensor's row of the table: run, stride, start, channels, area, position, step.
inline void check_tensors(const Step& step, const StableTensor& param, const StableTensor* grad,
                          const StableTensor& exp_avg, const StableTensor& exp_avg_sq, const int64_t* numbers) {
  const int64_t run = numbers[0], stride = numbers[1], start = numbers[2], channels = numbers[3], area = numbers[4];
  // Of an empty tensor too: rows of channels x area are counted by a division.
  const auto sizes = param.sizes();
  require(channels == 0 || (sizes.size() == 4 && channels > 0 && area > 0 && channels == sizes[1] &&
                            area == sizes[2] * sizes[3]),
          "channels and area are not the parameter's");
  check_tensor(param, param, step.param_type, channels != 0, "the parameter");
  if (grad) check_tensor(*grad, param, step.param_type, channels != 0, "the gradient");
  check_tensor(exp_avg, param, step.moment_type, channels != 0, "exp_avg");
  check_tensor(exp_avg_sq, param, step.moment_type, channels != 0, "exp_avg_sq");
  const int64_t numel = param.numel();
  require(run >= 1 && stride >= 0 && start >= 0, "a place in the whole is negative");
  require((__int128)(numel / run) * stride + start + run + numel < ((__int128)1 << 60), "a tensor is too large");
}

}  // namespace shiftproof
