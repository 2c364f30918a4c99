// C = A Bᵀ for few rows of A, where reading B once is what a product costs.
//
// Every element of C is a sum of products along k in 16 parts, one a lane, which are then added up
// in halves: lane i and i + 8, then i + 4, then i + 2, then i + 1.
#pragma once

#include "product.h"

namespace moeut {

constexpr int kSide = 4;  // rows of A, and of B, whose 16 sums are in registers at a time

// The sums of the lanes of 16 vectors: that of x[m][n] is lane 4 m + n.
inline __m512 sum_lanes(const __m512 (&x)[kSide][kSide]) {
  // Halves, or every other quarter, of a and of b, added: a's result is in the lower half.
  const auto by8 = [](__m512 a, __m512 b) {
    return _mm512_add_ps(_mm512_shuffle_f32x4(a, b, 0x44), _mm512_shuffle_f32x4(a, b, 0xee));
  };
  const auto by4 = [](__m512 a, __m512 b) {
    return _mm512_add_ps(_mm512_shuffle_f32x4(a, b, 0x88), _mm512_shuffle_f32x4(a, b, 0xdd));
  };
  // The same within each quarter.
  const auto by2 = [](__m512 a, __m512 b) {
    return _mm512_add_ps(_mm512_shuffle_ps(a, b, 0x44), _mm512_shuffle_ps(a, b, 0xee));
  };
  const auto by1 = [](__m512 a, __m512 b) {
    return _mm512_add_ps(_mm512_shuffle_ps(a, b, 0x88), _mm512_shuffle_ps(a, b, 0xdd));
  };
  __m512 column[kSide];  // quarter m: four sums that make x[m][n]
#pragma GCC unroll 4
  for (int n = 0; n < kSide; ++n)
    column[n] = by4(by8(x[0][n], x[1][n]), by8(x[2][n], x[3][n]));
  return by1(by2(column[0], column[1]), by2(column[2], column[3]));
}

// Sums over K of kRows rows of A with four of B. Where `ahead` is not 0, what lies so many floats
// behind is asked for: processors see no stream in rows that end.
template <int kRows>
inline __m512 sums_of(int64_t K, const float* const (&left)[kSide],
                      const float* const (&right)[kSide], int64_t ahead) {
  __m512 sum[kSide][kSide];
#pragma GCC unroll 4
  for (int m = 0; m < kSide; ++m)
#pragma GCC unroll 4
    for (int n = 0; n < kSide; ++n) sum[m][n] = _mm512_setzero_ps();
  const auto add = [&](int64_t k, __mmask16 mask) {
    __m512 of_b[kSide];
#pragma GCC unroll 4
    for (int n = 0; n < kSide; ++n) of_b[n] = _mm512_maskz_loadu_ps(mask, right[n] + k);
#pragma GCC unroll 4
    for (int m = 0; m < kRows; ++m) {
      const __m512 of_a = _mm512_maskz_loadu_ps(mask, left[m] + k);
#pragma GCC unroll 4
      for (int n = 0; n < kSide; ++n) sum[m][n] = _mm512_fmadd_ps(of_a, of_b[n], sum[m][n]);
    }
  };
  int64_t k = 0;
  if (ahead != 0) {
    for (; k + kLanes <= K; k += kLanes) {
#pragma GCC unroll 4
      for (int n = 0; n < kSide; ++n) ask_for(right[n] + k + ahead);
      add(k, __mmask16(0xffff));
    }
  } else {
    for (; k + kLanes <= K; k += kLanes) add(k, __mmask16(0xffff));
  }
  if (k < K) add(k, mask_of(K - k));
  return sum_lanes(sum);
}

// C (M, N) = A (M, K) Bᵀ, B (N, K) with contiguous rows. `first` and `last` are the columns of C to
// compute; of what a finish can do, it adds a bias and takes a ReLU.
inline void multiply_few(int64_t M, int64_t K, const float* a, const float* b, float* c,
                         int64_t c_row, int64_t first, int64_t last, const Finish& finish) {
  for (int64_t j = first; j < last; j += kSide) {
    const __mmask8 columns = __mmask8((1u << std::min<int64_t>(kSide, last - j)) - 1);
    const float *left[kSide], *right[kSide];
    for (int n = 0; n < kSide; ++n) right[n] = b + std::min(j + n, last - 1) * K;
    for (int64_t i = 0; i < M; i += kSide) {
      const int64_t rows = std::min<int64_t>(kSide, M - i), ahead = i == 0 ? kSide * K : 0;
      for (int m = 0; m < kSide; ++m) left[m] = a + std::min(i + m, M - 1) * K;
      __m512 sums;
      switch (rows) {
        case 1: sums = sums_of<1>(K, left, right, ahead); break;
        case 2: sums = sums_of<2>(K, left, right, ahead); break;
        case 3: sums = sums_of<3>(K, left, right, ahead); break;
        default: sums = sums_of<4>(K, left, right, ahead);
      }
      alignas(64) float of_rows[kSide * kSide];
      _mm512_store_ps(of_rows, sums);
      for (int64_t m = 0; m < rows; ++m) {
        __m128 value = _mm_load_ps(of_rows + kSide * m);
        if (finish.bias != nullptr)
          value = _mm_add_ps(value, _mm_maskz_loadu_ps(columns, finish.bias + j));
        if (finish.relu) value = _mm_max_ps(_mm_setzero_ps(), value);  // so a NaN stays one
        _mm_mask_storeu_ps(c + (i + m) * c_row + j, columns, value);
      }
    }
  }
}

}  // namespace moeut
