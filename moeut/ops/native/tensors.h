// What the operations share: tensors as rows of floats, and products shared among threads.
#pragma once

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <torch/csrc/autograd/custom_function.h>

#include <vector>

#include "product.h"

namespace moeut {

using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

inline Tensor as_rows(const Tensor& x) { return x.contiguous().view({-1, x.size(-1)}); }

inline const float* read(const Tensor& x) { return x.const_data_ptr<float>(); }
inline float* write(Tensor& x) { return x.mutable_data_ptr<float>(); }

// Rows of C are shared among threads in whole tiles; C's bits do not depend on how many there are.
inline void multiply_parallel(int64_t M, int64_t N, int64_t K, Matrix a, Matrix b, float* c,
                              int64_t c_row, const Finish& finish = {}) {
  const int64_t tiles = (M + kTileRows - 1) / kTileRows;
  const int64_t grain = std::max<int64_t>(1, (1 << 19) / std::max<int64_t>(1, kTileRows * N * K));
  at::parallel_for(0, tiles, grain, [&](int64_t first, int64_t last) {
    const int64_t start = first * kTileRows, stop = std::min(last * kTileRows, M);
    Finish here = finish;
    if (here.positive != nullptr) here.positive += start * c_row;
    if (here.scale != nullptr) here.scale += start;
    multiply(stop - start, N, K, {a.data + start * a.row, a.row, a.column}, b, c + start * c_row,
             c_row, here);
  });
}

// A buffer of this thread, number 0 or 1, of at least `size` floats of any value. It is kept.
inline float* scratch(int number, int64_t size) {
  static thread_local std::vector<float> buffers[2];
  std::vector<float>& buffer = buffers[number];
  if (static_cast<int64_t>(buffer.size()) < size) buffer.resize(size);
  return buffer.data();
}

// y += factor * x, over `width` floats.
inline void add_row(float* y, const float* x, int64_t width, float factor = 1.0f) {
  const __m512 scale = _mm512_set1_ps(factor);
  const auto add = [&](int64_t j, __mmask16 mask) {
    const __m512 sum = _mm512_fmadd_ps(scale, _mm512_maskz_loadu_ps(mask, x + j),
                                       _mm512_maskz_loadu_ps(mask, y + j));
    _mm512_mask_storeu_ps(y + j, mask, sum);
  };
  int64_t j = 0;
  for (; j + kLanes <= width; j += kLanes) add(j, __mmask16(0xffff));
  if (j < width) add(j, mask_of(width - j));
}

inline float dot(const float* x, const float* y, int64_t width) {
  __m512 sum = _mm512_setzero_ps();
  int64_t j = 0;
  for (; j + kLanes <= width; j += kLanes)
    sum = _mm512_fmadd_ps(_mm512_loadu_ps(x + j), _mm512_loadu_ps(y + j), sum);
  if (j < width) {
    const __mmask16 mask = mask_of(width - j);
    sum = _mm512_fmadd_ps(_mm512_maskz_loadu_ps(mask, x + j), _mm512_maskz_loadu_ps(mask, y + j),
                          sum);
  }
  return _mm512_reduce_add_ps(sum);
}

}  // namespace moeut
