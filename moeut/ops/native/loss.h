// The cross entropy of rows of logits, which writes no probabilities: its gradient is made from the
// logits and the sum of each row.
#pragma once

#include "softmax.h"
#include "tensors.h"

namespace moeut {

// The largest element of a row, and the sum of the exponentials of what each is below it. Together
// they lose nothing where logits are large, as the logarithm of the whole sum would.
struct RowSum {
  float top, sum;
};

inline RowSum sum_of(const float* row, int64_t width) {
  const __m512 lowest = _mm512_set1_ps(-__builtin_inff());
  __m512 highest = lowest;
  for (int64_t j = 0; j < width; j += kLanes)
    highest = _mm512_max_ps(highest, _mm512_mask_loadu_ps(lowest, mask_of(width - j), row + j));
  const float top = _mm512_reduce_max_ps(highest);
  const __m512 shift = _mm512_set1_ps(top);
  __m512 sum = _mm512_setzero_ps();
  for (int64_t j = 0; j < width; j += kLanes) {
    const __mmask16 mask = mask_of(width - j);
    const __m512 power = exp16(_mm512_sub_ps(_mm512_maskz_loadu_ps(mask, row + j), shift));
    sum = _mm512_mask_add_ps(sum, mask, sum, power);
  }
  return {top, _mm512_reduce_add_ps(sum)};
}

class CrossEntropy : public torch::autograd::Function<CrossEntropy> {
 public:
  // logits (N, V), targets (N,) -> the sum over rows whose target is not `ignored`
  static Tensor forward(AutogradContext* context, const Tensor& logits, const Tensor& targets,
                        int64_t ignored) {
    at::AutoDispatchBelowADInplaceOrView below;
    TORCH_CHECK_VALUE(logits.dim() == 2 && targets.dim() == 1 && logits.size(0) == targets.size(0),
                      "logits ", logits.sizes(), " and targets ", targets.sizes(),
                      ": expected (N, V) and (N,)");
    const Tensor rows = logits.contiguous(), wanted = targets.contiguous();
    const int64_t count = rows.size(0), width = rows.size(1);
    Tensor sums = at::empty({count, 2}, rows.options());
    const float* source = read(rows);
    const int64_t* target = wanted.const_data_ptr<int64_t>();
    for (int64_t i = 0; i < count; ++i)
      TORCH_CHECK_INDEX(target[i] == ignored || (target[i] >= 0 && target[i] < width), "Target ",
                        target[i], " is out of bounds.");
    float* to_sums = write(sums);
    at::parallel_for(0, count, 64, [&](int64_t first, int64_t last) {
      for (int64_t i = first; i < last; ++i) {
        const RowSum row = target[i] == ignored ? RowSum{} : sum_of(source + i * width, width);
        to_sums[2 * i] = row.top, to_sums[2 * i + 1] = row.sum;
      }
    });
    double loss = 0.0;
    for (int64_t i = 0; i < count; ++i)
      if (target[i] != ignored)
        loss += double(to_sums[2 * i]) - source[i * width + target[i]] +
                std::log(double(to_sums[2 * i + 1]));
    context->save_for_backward({rows, wanted, sums});
    context->saved_data["ignored"] = ignored;
    return at::scalar_tensor(loss, rows.options());
  }

  static variable_list backward(AutogradContext* context, variable_list gradients) {
    TORCH_CHECK(!at::GradMode::is_enabled(),
                "the native loss can be differentiated once; MOEUT_NATIVE=0 does without it");
    const auto saved = context->get_saved_variables();
    const int64_t ignored = context->saved_data["ignored"].toInt();
    const int64_t count = saved[0].size(0), width = saved[0].size(1);
    const float factor = gradients[0].item<float>();
    Tensor d_logits = at::empty_like(saved[0]);
    const float *source = read(saved[0]), *sums = read(saved[2]);
    const int64_t* target = saved[1].const_data_ptr<int64_t>();
    float* to = write(d_logits);
    at::parallel_for(0, count, 64, [&](int64_t first, int64_t last) {
      for (int64_t i = first; i < last; ++i) {
        float* row = to + i * width;
        if (target[i] == ignored) {
          std::fill(row, row + width, 0.0f);
          continue;
        }
        const __m512 top = _mm512_set1_ps(sums[2 * i]);
        const __m512 scale = _mm512_set1_ps(factor / sums[2 * i + 1]);
        for (int64_t j = 0; j < width; j += kLanes) {
          const __mmask16 mask = mask_of(width - j);
          const __m512 shifted =
              _mm512_sub_ps(_mm512_maskz_loadu_ps(mask, source + i * width + j), top);
          _mm512_mask_storeu_ps(row + j, mask, _mm512_mul_ps(exp16(shifted), scale));
        }
        row[target[i]] -= factor;
      }
    });
    return {d_logits, Tensor(), Tensor()};
  }
};

inline Tensor cross_entropy(const Tensor& logits, const Tensor& targets, int64_t ignored) {
  return CrossEntropy::apply(logits, targets, ignored);
}

}  // namespace moeut
