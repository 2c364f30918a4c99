// Dropout whose mask is a function of a seed and of the place: drawn again in the backward pass, so
// nothing is kept, and drawn 64 numbers at a time.
#pragma once

#include <ATen/CPUGeneratorImpl.h>

#include <mutex>

#include "tensors.h"

namespace moeut {

// Draw a seed from PyTorch's generator, whose state a checkpoint holds.
inline int64_t draw_seed() {
  auto generator = at::detail::getDefaultCPUGenerator();
  std::lock_guard<std::mutex> lock(generator.mutex());
  return static_cast<int64_t>(at::check_generator<at::CPUGeneratorImpl>(generator)->random64());
}

// The high and the low halves of 16 products of 32-bit numbers.
inline void multiply_wide(__m512i x, __m512i y, __m512i& high, __m512i& low) {
  const __m512i even = _mm512_mul_epu32(x, y);
  const __m512i odd = _mm512_mul_epu32(_mm512_srli_epi64(x, 32), _mm512_srli_epi64(y, 32));
  high = _mm512_mask_mov_epi32(_mm512_srli_epi64(even, 32), 0xaaaa, odd);
  low = _mm512_mask_mov_epi32(even, 0xaaaa, _mm512_slli_epi64(odd, 32));
}

// Philox 4x32-10 (Salmon et al. 2011): 64 random numbers of 32 bits at `block` of a stream.
inline void philox(uint64_t seed, uint64_t stream, uint32_t block, __m512i (&out)[4]) {
  const __m512i lanes =
      _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  __m512i c0 = _mm512_add_epi32(_mm512_set1_epi32(static_cast<int>(block * 16u)), lanes);
  __m512i c1 = _mm512_set1_epi32(static_cast<int>(block >> 28));
  __m512i c2 = _mm512_set1_epi32(static_cast<int>(stream));
  __m512i c3 = _mm512_set1_epi32(static_cast<int>(stream >> 32));
  uint32_t k0 = static_cast<uint32_t>(seed), k1 = static_cast<uint32_t>(seed >> 32);
  const __m512i m0 = _mm512_set1_epi32(static_cast<int>(0xD2511F53u));
  const __m512i m1 = _mm512_set1_epi32(static_cast<int>(0xCD9E8D57u));
  for (int round = 0; round < 10; ++round) {
    __m512i high0, low0, high1, low1;
    multiply_wide(c0, m0, high0, low0);
    multiply_wide(c2, m1, high1, low1);
    c0 = _mm512_xor_si512(_mm512_xor_si512(high1, c1), _mm512_set1_epi32(static_cast<int>(k0)));
    c2 = _mm512_xor_si512(_mm512_xor_si512(high0, c3), _mm512_set1_epi32(static_cast<int>(k1)));
    c1 = low1;
    c3 = low0;
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  out[0] = c0, out[1] = c1, out[2] = c2, out[3] = c3;
}

// Numbers times 0 or 1 / (1 - probability), by random ones of 32 bits.
struct Drop {
  __m512i bound;
  __m512 factor;

  explicit Drop(float probability)
      : bound(_mm512_set1_epi32(int(uint32_t(double(probability) * 4294967296.0)))),
        factor(_mm512_set1_ps(1.0f / (1.0f - probability))) {}

  __m512 apply(__m512 x, __m512i random) const {
    return _mm512_maskz_mul_ps(_mm512_cmpge_epu32_mask(random, bound), x, factor);
  }
};

// target = source times 0 or 1 / (1 - probability), over `count` floats of one stream; they may be
// one.
inline void drop(const float* source, float* target, int64_t count, float probability,
                 uint64_t seed, uint64_t stream) {
  const Drop drop(probability);
  __m512i numbers[4];
  for (int64_t i = 0; i < count; i += 4 * kLanes) {
    philox(seed, stream, static_cast<uint32_t>(i / (4 * kLanes)), numbers);
    for (int part = 0; part < 4 && i + part * kLanes < count; ++part) {
      const int64_t at = i + part * kLanes;
      const __mmask16 here = mask_of(count - at);
      const __m512 value = _mm512_maskz_loadu_ps(here, source + at);
      _mm512_mask_storeu_ps(target + at, here, drop.apply(value, numbers[part]));
    }
  }
}

constexpr int64_t kStreamFloats = 1 << 14;  // elements of a tensor that one stream serves

inline Tensor dropout_by_seed(const Tensor& x, double probability, int64_t seed) {
  const Tensor from = x.contiguous();
  Tensor y = at::empty_like(from);
  const float* source = read(from);
  float* target = write(y);
  const int64_t count = from.numel(), streams = (count + kStreamFloats - 1) / kStreamFloats;
  at::parallel_for(0, streams, 4, [&](int64_t first, int64_t last) {
    for (int64_t s = first; s < last; ++s) {
      const int64_t at = s * kStreamFloats;
      drop(source + at, target + at, std::min(kStreamFloats, count - at), float(probability),
           uint64_t(seed), uint64_t(s));
    }
  });
  return y;
}

class Dropout : public torch::autograd::Function<Dropout> {
 public:
  static Tensor forward(AutogradContext* context, const Tensor& x, double probability) {
    at::AutoDispatchBelowADInplaceOrView below;
    const int64_t seed = draw_seed();
    context->saved_data["seed"] = seed;
    context->saved_data["probability"] = probability;
    return dropout_by_seed(x, probability, seed);
  }

  static variable_list backward(AutogradContext* context, variable_list gradients) {
    TORCH_CHECK(!at::GradMode::is_enabled(),
                "native dropout can be differentiated once; MOEUT_NATIVE=0 does without it");
    return {dropout_by_seed(gradients[0], context->saved_data["probability"].toDouble(),
                            context->saved_data["seed"].toInt()),
            Tensor()};
  }
};

inline Tensor dropout_once(const Tensor& x, double probability) {
  return dropout_by_seed(x, probability, draw_seed());
}

inline Tensor dropout(const Tensor& x, double probability) {
  return at::GradMode::is_enabled() ? Dropout::apply(x, probability)
                                    : dropout_once(x, probability);
}

}  // namespace moeut
