// The exponential of 16 floats, and the softmax of a row.
#pragma once

#include "product.h"

namespace moeut {

// e^x within about one unit in the last place; 0 below -87.3, where float32 has no normal number.
inline __m512 exp16(__m512 x) {
  const __m512 low = _mm512_set1_ps(-87.3365f), high = _mm512_set1_ps(88.7228f);
  // A NaN compares as neither and stays one; of two equal operands max and min return the second.
  const __mmask16 zero = _mm512_cmp_ps_mask(x, low, _CMP_LT_OQ);
  const __mmask16 infinite = _mm512_cmp_ps_mask(x, high, _CMP_GT_OQ);
  const __m512 n = _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(1.44269504f)),
                                        _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  __m512 r = _mm512_fnmadd_ps(n, _mm512_set1_ps(0.693359375f), x);  // x - n ln 2, in two parts
  r = _mm512_fnmadd_ps(n, _mm512_set1_ps(-2.12194440e-4f), r);
  __m512 p = _mm512_set1_ps(1.9875691500e-4f);
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.3981999507e-3f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(8.3334519073e-3f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(4.1665795894e-2f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.6666665459e-1f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(5.0000001201e-1f));
  p = _mm512_add_ps(_mm512_fmadd_ps(p, _mm512_mul_ps(r, r), r), _mm512_set1_ps(1.0f));
  p = _mm512_scalef_ps(p, n);
  p = _mm512_mask_mov_ps(p, infinite, _mm512_set1_ps(__builtin_inff()));
  return _mm512_mask_mov_ps(p, zero, _mm512_setzero_ps());
}

// target = softmax of source, over `width` floats; they may be one.
inline void softmax_row(const float* source, float* target, int64_t width) {
  const __m512 lowest = _mm512_set1_ps(-__builtin_inff());
  __m512 highest = lowest;
  for (int64_t j = 0; j < width; j += kLanes)
    highest =
        _mm512_max_ps(highest, _mm512_mask_loadu_ps(lowest, mask_of(width - j), source + j));
  const __m512 top = _mm512_set1_ps(_mm512_reduce_max_ps(highest));
  __m512 sum = _mm512_setzero_ps();
  for (int64_t j = 0; j < width; j += kLanes) {
    const __mmask16 mask = mask_of(width - j);
    const __m512 power = exp16(_mm512_sub_ps(_mm512_maskz_loadu_ps(mask, source + j), top));
    sum = _mm512_mask_add_ps(sum, mask, sum, power);
    _mm512_mask_storeu_ps(target + j, mask, power);
  }
  const __m512 factor = _mm512_set1_ps(1.0f / _mm512_reduce_add_ps(sum));
  for (int64_t j = 0; j < width; j += kLanes) {
    const __mmask16 mask = mask_of(width - j);
    _mm512_mask_storeu_ps(target + j, mask,
                          _mm512_mul_ps(_mm512_maskz_loadu_ps(mask, target + j), factor));
  }
}

}  // namespace moeut
