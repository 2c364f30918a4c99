// Products of routed rows by the weights of their experts, and their gradients.
//
// S slots, R <= S of them with an expert; sorted rows offsets[e] .. offsets[e + 1] are those of
// expert e, and order[r] is the slot of sorted row r, ascending within an expert.
//
// Threads share the rows of an output, never a row, and the gradients of weights by expert: every sum
// runs over experts, or over slots, in ascending order, whatever the number of threads.
#pragma once

#include <cstring>
#include <optional>
#include <vector>

#include "tensors.h"

namespace moeut {

constexpr int64_t kBlockRows = 192;  // rows of one expert from gather to scatter: they stay in L2

struct Sorted {
  const int64_t* order;
  const int64_t* offsets;
  const float* gate;  // (S,), or null
  int64_t experts;

  Sorted(const Tensor& order_, const Tensor& offsets_, const std::optional<Tensor>& gate_)
      : order(order_.const_data_ptr<int64_t>()),
        offsets(offsets_.const_data_ptr<int64_t>()),
        gate(gate_.has_value() ? gate_->const_data_ptr<float>() : nullptr),
        experts(offsets_.size(0) - 1) {}

  int64_t routed() const { return offsets[experts]; }
};

// Call work(expert, first sorted row, rows) for all rows whose slot is in [slot_from, slot_to).
template <typename Work>
void for_blocks(const Sorted& sorted, int64_t slot_from, int64_t slot_to, const Work& work) {
  for (int64_t e = 0; e < sorted.experts; ++e) {
    const int64_t *begin = sorted.order + sorted.offsets[e],
                  *end = sorted.order + sorted.offsets[e + 1];
    const int64_t first = std::lower_bound(begin, end, slot_from) - sorted.order;
    const int64_t last = std::lower_bound(begin, end, slot_to) - sorted.order;
    for (int64_t r = first; r < last; r += kBlockRows)
      work(e, r, std::min(kBlockRows, last - r));
  }
}

// Share rows, each of `slots` slots, among threads, and call work(first slot, last slot) for each.
template <typename Work>
void share_rows(int64_t rows, int64_t slots, int64_t work_per_slot, const Work& work) {
  const int64_t cost = std::max<int64_t>(1, slots * work_per_slot);
  at::parallel_for(0, rows, std::max<int64_t>(1, (1 << 20) / cost),
                   [&](int64_t from, int64_t to) { work(from * slots, to * slots); });
}

// Call work(expert) for every expert, shared among threads by the rows that they have.
template <typename Work>
void share_experts(const Sorted& sorted, int64_t work_per_slot, const Work& work) {
  const int64_t routed = sorted.routed();
  const int64_t grain = std::max<int64_t>(1, (1 << 20) / std::max<int64_t>(1, work_per_slot));
  if (routed == 0) {
    for (int64_t e = 0; e < sorted.experts; ++e) work(e);
    return;
  }
  at::parallel_for(0, routed, grain, [&](int64_t from, int64_t to) {
    for (int64_t e = 0; e < sorted.experts; ++e) {
      // Who has the row before which the expert begins has the expert; the last thread the rest.
      const int64_t at = std::min(sorted.offsets[e], routed - 1);
      if (from <= at && at < to) work(e);
    }
  });
}

// Copy the rows of `source` that sorted rows r .. r + count read.
inline const float* gather(const Sorted& sorted, int64_t r, int64_t count, const float* source,
                           int64_t width, int64_t slots, float* buffer) {
  if (count == 1) return source + sorted.order[r] / slots * width;
  for (int64_t i = 0; i < count; ++i)
    std::memcpy(buffer + i * width, source + sorted.order[r + i] / slots * width,
                width * sizeof(float));
  return buffer;
}

inline void scatter(const Sorted& sorted, int64_t r, int64_t count, const float* rows,
                    int64_t width, int64_t slots, float* target) {
  for (int64_t i = 0; i < count; ++i)
    add_row(target + sorted.order[r + i] / slots * width, rows + i * width, width);
}

// The gates of sorted rows r .. r + count, in their order; null without gates.
inline const float* gates_of(const Sorted& sorted, int64_t r, int64_t count, float* buffer) {
  if (sorted.gate == nullptr) return nullptr;
  for (int64_t i = 0; i < count; ++i) buffer[i] = sorted.gate[sorted.order[r + i]];
  return buffer;
}

// --- one product ---------------------------------------------------------------------------------

// x (S / slots_in, I), weight (E, I, O) -> (S / slots_out, O)
inline Tensor expert_linear_forward(const Tensor& x, const Tensor& weight, const Tensor& order,
                                    const Tensor& offsets, const std::optional<Tensor>& gate,
                                    int64_t slots_in, int64_t slots_out) {
  const int64_t in = weight.size(1), out = weight.size(2), rows = order.size(0) / slots_out;
  const Sorted sorted(order, offsets, gate);
  Tensor result = at::zeros({rows, out}, x.options());
  const float *source = read(x), *w = read(weight);
  float* target = write(result);
  share_rows(rows, slots_out, in * out, [&](int64_t from, int64_t to) {
    float *inputs = scratch(0, kBlockRows * in), *products = scratch(1, kBlockRows * out);
    float gates[kBlockRows];
    for_blocks(sorted, from, to, [&](int64_t e, int64_t r, int64_t count) {
      const float* a = gather(sorted, r, count, source, in, slots_in, inputs);
      Finish finish;
      finish.scale = gates_of(sorted, r, count, gates);
      multiply(count, out, in, {a, in, 1}, {w + e * in * out, out, 1}, products, out,
               finish);
      scatter(sorted, r, count, products, out, slots_out, target);
    });
  });
  return result;
}

// The gradients of x, weight and gate, undefined where not needed.
inline variable_list expert_linear_backward(const Tensor& gradient, const Tensor& x,
                                            const Tensor& weight, const Tensor& order,
                                            const Tensor& offsets,
                                            const std::optional<Tensor>& gate, int64_t slots_in,
                                            int64_t slots_out, std::array<bool, 3> needs) {
  const int64_t in = weight.size(1), out = weight.size(2);
  const Sorted sorted(order, offsets, gate);
  const float *g = read(gradient), *source = read(x), *w = read(weight);
  Tensor d_x, d_weight, d_gate;
  if (needs[2]) d_gate = at::zeros({order.size(0)}, x.options());
  if (needs[0]) d_x = at::zeros_like(x);
  float* to_gate = needs[2] ? write(d_gate) : nullptr;
  float* to_x = needs[0] ? write(d_x) : nullptr;
  if (needs[0] || needs[2]) {
    share_rows(x.size(0), slots_in, in * out, [&](int64_t from, int64_t to) {
      float *grads = scratch(0, kBlockRows * out), *products = scratch(1, kBlockRows * in);
      for_blocks(sorted, from, to, [&](int64_t e, int64_t r, int64_t count) {
        const float* a = gather(sorted, r, count, g, out, slots_out, grads);
        multiply(count, in, out, {a, out, 1}, {w + e * in * out, 1, out}, products, in);
        for (int64_t i = 0; i < count; ++i) {
          const int64_t slot = sorted.order[r + i], row = slot / slots_in;
          const float* d = products + i * in;
          if (to_gate != nullptr) to_gate[slot] = dot(d, source + row * in, in);
          if (to_x != nullptr)
            add_row(to_x + row * in, d, in, sorted.gate == nullptr ? 1.0f : sorted.gate[slot]);
        }
      });
    });
  }
  if (needs[1]) {
    d_weight = at::empty_like(weight);
    float* to_weight = write(d_weight);
    share_experts(sorted, in * out, [&](int64_t e) {
      float *inputs = scratch(0, kBlockRows * in), *grads = scratch(1, kBlockRows * out);
      Finish finish;
      const int64_t last = sorted.offsets[e + 1];
      int64_t r = sorted.offsets[e];
      do {
        const int64_t count = std::min(kBlockRows, last - r);
        const float* a = gather(sorted, r, count, source, in, slots_in, inputs);
        const float* b = gather(sorted, r, count, g, out, slots_out, grads);
        if (sorted.gate != nullptr) {  // of the narrower side
          const bool left = in < out;
          const int64_t width = left ? in : out;
          float* buffer = left ? inputs : grads;
          for (int64_t i = 0; i < count; ++i) {
            const float factor = sorted.gate[sorted.order[r + i]];
            const float* row = (left ? a : b) + i * width;
            for (int64_t j = 0; j < width; ++j) buffer[i * width + j] = factor * row[j];
          }
          (left ? a : b) = buffer;
        }
        multiply(in, out, count, {a, 1, in}, {b, out, 1}, to_weight + e * in * out, out, finish);
        finish.accumulate = true;
        r += kBlockRows;
      } while (r < last);
    });
  }
  return {d_x, d_weight, d_gate};
}

// --- an MLP --------------------------------------------------------------------------------------

// x (T, D), up (E, D, F), down (E, F, D) -> (T, D), and relu(x up) (S, F) of sorted rows if kept.
inline std::tuple<Tensor, Tensor> expert_mlp_forward(const Tensor& x, const Tensor& up,
                                                     const Tensor& down, const Tensor& order,
                                                     const Tensor& offsets,
                                                     const std::optional<Tensor>& gate, bool keep) {
  const int64_t tokens = x.size(0), width = up.size(1), hidden = up.size(2);
  const int64_t top_k = order.size(0) / std::max<int64_t>(1, tokens);
  const Sorted sorted(order, offsets, gate);
  Tensor result = at::zeros({tokens, width}, x.options());
  Tensor kept = at::empty({keep ? order.size(0) : 0, hidden}, x.options());
  const float *source = read(x), *w_up = read(up), *w_down = read(down);
  float *target = write(result), *to_kept = write(kept);
  share_rows(tokens, top_k, width * hidden, [&](int64_t from, int64_t to) {
    float *inputs = scratch(0, kBlockRows * width), *hiddens = scratch(1, kBlockRows * hidden);
    float gates[kBlockRows];
    for_blocks(sorted, from, to, [&](int64_t e, int64_t r, int64_t count) {
      const float* a = gather(sorted, r, count, source, width, top_k, inputs);
      float* h = keep ? to_kept + r * hidden : hiddens;
      Finish first, second;
      first.relu = true;
      multiply(count, hidden, width, {a, width, 1}, {w_up + e * width * hidden, hidden, 1}, h,
               hidden, first);
      second.scale = gates_of(sorted, r, count, gates);
      multiply(count, width, hidden, {h, hidden, 1}, {w_down + e * width * hidden, width, 1},
               inputs, width, second);
      scatter(sorted, r, count, inputs, width, top_k, target);
    });
  });
  return {result, kept};
}

// The gradients of x, up, down and gate, undefined where not needed.
inline variable_list expert_mlp_backward(const Tensor& gradient, const Tensor& x, const Tensor& up,
                                         const Tensor& down, const Tensor& order,
                                         const Tensor& offsets, const std::optional<Tensor>& gate,
                                         const Tensor& kept, std::array<bool, 4> needs) {
  const int64_t tokens = x.size(0), width = up.size(1), hidden = up.size(2);
  const int64_t top_k = order.size(0) / std::max<int64_t>(1, tokens), size = width * hidden;
  const Sorted sorted(order, offsets, gate);
  const float *g = read(gradient), *source = read(x), *w_up = read(up), *w_down = read(down);
  const float* h = read(kept);
  Tensor d_x, d_up, d_down, d_gate, d_hidden = at::empty({sorted.routed(), hidden}, x.options());
  if (needs[3]) d_gate = at::zeros({order.size(0)}, x.options());
  if (needs[0]) d_x = at::zeros_like(x);
  float *z = write(d_hidden), *to_gate = needs[3] ? write(d_gate) : nullptr;
  float* to_x = needs[0] ? write(d_x) : nullptr;
  share_rows(tokens, top_k, size, [&](int64_t from, int64_t to) {
    float* rows = scratch(0, kBlockRows * width);
    float gates[kBlockRows];
    for_blocks(sorted, from, to, [&](int64_t e, int64_t r, int64_t count) {
      const float* a = gather(sorted, r, count, g, width, top_k, rows);
      const float* factors = gates_of(sorted, r, count, gates);
      Finish finish;
      finish.positive = h + r * hidden;  // what the ReLU passed, and where h is not 0
      multiply(count, hidden, width, {a, width, 1}, {w_down + e * size, 1, width}, z + r * hidden,
               hidden, finish);
      for (int64_t i = 0; i < count; ++i) {
        float* row = z + (r + i) * hidden;
        if (to_gate != nullptr)
          to_gate[sorted.order[r + i]] = dot(row, h + (r + i) * hidden, hidden);
        if (factors != nullptr)
          for (int64_t j = 0; j < hidden; ++j) row[j] *= factors[i];
      }
      if (to_x != nullptr) {
        multiply(count, width, hidden, {z + r * hidden, hidden, 1}, {w_up + e * size, 1, hidden},
                 rows, width);
        scatter(sorted, r, count, rows, width, top_k, to_x);
      }
    });
  });
  if (needs[1]) d_up = at::empty_like(up);
  if (needs[2]) d_down = at::empty_like(down);
  float *to_up = needs[1] ? write(d_up) : nullptr, *to_down = needs[2] ? write(d_down) : nullptr;
  share_experts(sorted, size, [&](int64_t e) {
    float *rows = scratch(0, kBlockRows * width), *gated = scratch(1, kBlockRows * hidden);
    Finish finish;
    const int64_t last = sorted.offsets[e + 1];
    int64_t r = sorted.offsets[e];
    do {
      const int64_t count = std::min(kBlockRows, last - r);
      if (to_up != nullptr) {
        const float* a = gather(sorted, r, count, source, width, top_k, rows);
        multiply(width, hidden, count, {a, 1, width}, {z + r * hidden, hidden, 1}, to_up + e * size,
                 hidden, finish);
      }
      if (to_down != nullptr) {
        const float* b = gather(sorted, r, count, g, width, top_k, rows);
        for (int64_t i = 0; i < count; ++i) {
          const float factor = sorted.gate == nullptr ? 1.0f : sorted.gate[sorted.order[r + i]];
          for (int64_t j = 0; j < hidden; ++j)
            gated[i * hidden + j] = factor * h[(r + i) * hidden + j];
        }
        multiply(hidden, width, count, {gated, 1, hidden}, {b, width, 1},
                 to_down + e * size, width, finish);
      }
      finish.accumulate = true;
      r += kBlockRows;
    } while (r < last);
  });
  return {d_x, d_up, d_down, d_gate};
}

// --- sorting -------------------------------------------------------------------------------------

// Sort the slots of a decision (S,) by expert, stably: order (S,), counts (E,), offsets (E + 1,).
// Slots without an expert (-1) come last.
inline std::tuple<Tensor, Tensor, Tensor> sort_slots(const Tensor& index, int64_t experts) {
  const int64_t slots = index.size(0);
  Tensor order = at::empty({slots}, index.options());
  Tensor counts = at::zeros({experts}, index.options());
  Tensor offsets = at::empty({experts + 1}, index.options());
  const int64_t* expert = index.const_data_ptr<int64_t>();
  int64_t *to_order = order.mutable_data_ptr<int64_t>(), *count = counts.mutable_data_ptr<int64_t>(),
          *offset = offsets.mutable_data_ptr<int64_t>();
  int64_t low = 0, high = 0;
  for (int64_t s = 0; s < slots; ++s) {
    low = std::min(low, expert[s]);
    high = std::max(high, expert[s]);
  }
  TORCH_CHECK_VALUE(low >= -1 && high < experts, "expert_index has values from ", low, " to ", high,
                    ": expected -1 (no expert) to ", experts - 1, " (num_experts=", experts, ")");
  for (int64_t s = 0; s < slots; ++s)
    if (expert[s] >= 0) ++count[expert[s]];
  offset[0] = 0;
  for (int64_t e = 0; e < experts; ++e) offset[e + 1] = offset[e] + count[e];
  std::vector<int64_t> next(offset, offset + experts + 1);
  for (int64_t s = 0; s < slots; ++s)
    to_order[next[expert[s] < 0 ? experts : expert[s]]++] = s;
  return {order, counts, offsets};
}

}  // namespace moeut
