// The softmax of a router's logits over few experts, of all rows at once, and its gradient.
//
// Every number is PyTorch's, to the bit, which handles a row of fewer than 16 a vector at a time, and
// sums it from left to right.
#pragma once

#include <cmath>

#include "softmax.h"

namespace moeut {

// e^x of a logit below its row's highest, as Sleef has it within one unit in the last place (and
// PyTorch by it): exp16 of softmax.h rounds otherwise.
inline __m512 exp_of_router(__m512 x) {
  const __m512 n = _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(1.44269504f)),
                                        _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  __m512 r = _mm512_fmadd_ps(n, _mm512_set1_ps(-0.693145752f), x);  // x - n ln 2, in two parts
  r = _mm512_fmadd_ps(n, _mm512_set1_ps(-1.42860677e-6f), r);
  __m512 p = _mm512_set1_ps(1.98527618e-4f);
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.39304355e-3f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(8.33336078e-3f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(4.16664854e-2f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.66666672e-1f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(0.5f));
  p = _mm512_add_ps(_mm512_set1_ps(1.0f), _mm512_fmadd_ps(_mm512_mul_ps(r, r), p, r));
  const __mmask16 zero = _mm512_cmp_ps_mask(x, _mm512_set1_ps(-104.0f), _CMP_LT_OQ);
  return _mm512_mask_mov_ps(_mm512_scalef_ps(p, n), zero, _mm512_setzero_ps());
}

// Whether rows of so many experts are handled all together.
inline bool is_narrow(int64_t experts) { return experts < kLanes; }

// target = softmax of each of `rows` narrow rows.
inline void softmax_of_narrow(const float* source, float* target, int64_t rows, int64_t width) {
  for (int64_t i = 0; i < rows * width; i += width) {
    float top = source[i];
    for (int64_t e = i + 1; e < i + width; ++e)
      top = source[e] > top || std::isnan(source[e]) ? source[e] : top;
    for (int64_t e = i; e < i + width; ++e) target[e] = source[e] - top;
  }
  for (int64_t j = 0; j < rows * width; j += kLanes) {
    const __mmask16 mask = mask_of(rows * width - j);
    _mm512_mask_storeu_ps(target + j, mask,
                          exp_of_router(_mm512_maskz_loadu_ps(mask, target + j)));
  }
  for (int64_t i = 0; i < rows * width; i += width) {
    float sum = target[i];
    for (int64_t e = i + 1; e < i + width; ++e) sum += target[e];
    const float factor = 1.0f / sum;
    for (int64_t e = i; e < i + width; ++e) target[e] *= factor;
  }
}

// target = the gradient of narrow rows, given that of their softmax p.
inline void through_softmax_of_narrow(const float* gradient, const float* p, float* target,
                                      int64_t rows, int64_t width) {
  // Products are stored before they are added up: a fused multiply-add would round otherwise.
  for (int64_t j = 0; j < rows * width; ++j) target[j] = gradient[j] * p[j];
  for (int64_t i = 0; i < rows * width; i += width) {
    float sum = target[i];
    for (int64_t e = i + 1; e < i + width; ++e) sum += target[e];
    for (int64_t e = i; e < i + width; ++e) target[e] = (gradient[e] - sum) * p[e];
  }
}

}  // namespace moeut
