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

#include "gradient_sum.h"
#include "tensors.h"

namespace moeut {

constexpr int64_t kBlockRows = 192;  // rows of one expert that are multiplied at a time

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

// Rows of floats, each of which so many slots read, one row after the other.
struct SlotRows {
  const float* data;
  int64_t width, slots;
  int shift;  // of slots, if they are a power of two: a division takes as long as adding up a row

  SlotRows(const float* data_, int64_t width_, int64_t slots_)
      : data(data_), width(width_), slots(slots_),
        shift((slots & (slots - 1)) == 0 ? __builtin_ctzll(std::max<int64_t>(1, slots)) : -1) {}

  // Where the row of a slot begins.
  int64_t place_of(int64_t slot) const {
    return (shift >= 0 ? slot >> shift : slot / slots) * width;
  }

  // Sorted rows r .. r + count, whose places are put into the buffer.
  Matrix of(const Sorted& sorted, int64_t r, int64_t count, int64_t* places) const {
    for (int64_t i = 0; i < count; ++i) places[i] = place_of(sorted.order[r + i]);
    return {data, width, 1, places};
  }
};

// The gates of sorted rows r .. r + count, in their order; null without gates.
inline const float* gates_of(const Sorted& sorted, int64_t r, int64_t count, float* buffer) {
  if (sorted.gate == nullptr) return nullptr;
  for (int64_t i = 0; i < count; ++i) buffer[i] = sorted.gate[sorted.order[r + i]];
  return buffer;
}

// Add `some` rows of floats, one after the other, to those that begin at places i .. i + some in
// `target`; of `count` places, what follows is asked for.
inline void add_to(float* target, const int64_t* places, int64_t i, int64_t some, int64_t count,
                   const float* rows, int64_t width) {
  ask_for_rows({target, width, 1, places + i + some}, std::min(some, count - i - some), width);
  for (int64_t n = 0; n < some; ++n) add_row(target + places[i + n], rows + n * width, width);
}

// --- one product ---------------------------------------------------------------------------------

// x (S / slots_in, I), weight (E, I, O) -> (S / slots_out, O)
inline Tensor expert_linear_forward(const Tensor& x, const Tensor& weight, const Tensor& order,
                                    const Tensor& offsets, const std::optional<Tensor>& gate,
                                    int64_t slots_in, int64_t slots_out) {
  const int64_t in = weight.size(1), out = weight.size(2), rows = order.size(0) / slots_out;
  const Sorted sorted(order, offsets, gate);
  Tensor result = at::zeros({rows, out}, x.options());
  const float* w = read(weight);
  float* target = write(result);
  const SlotRows inputs(read(x), in, slots_in), results(target, out, slots_out);
  share_rows(rows, slots_out, in * out, [&](int64_t from, int64_t to) {
    float* products = scratch(0, kBlockRows * out);
    float gates[kBlockRows];
    int64_t places[kBlockRows], targets[kBlockRows];
    for_blocks(sorted, from, to, [&](int64_t e, int64_t r, int64_t count) {
      const Matrix a = inputs.of(sorted, r, count, places);
      results.of(sorted, r, count, targets);
      Finish finish;
      finish.scale = gates_of(sorted, r, count, gates);
      multiply_rows(count, out, in, a, {w + e * in * out, out, 1}, products, out, finish,
                    [&](int64_t i, int64_t some, const float* rows) {
                      add_to(target, targets, i, some, count, rows, out);
                    });
    });
  });
  return result;
}

// Copy what sorted rows r .. r + count read, times their gates.
inline void copy_gated(const Sorted& sorted, int64_t r, int64_t count, const SlotRows& rows,
                       float* buffer) {
  for (int64_t i = r; i < r + count; ++i, buffer += rows.width) {
    const int64_t slot = sorted.order[i];
    const float factor = sorted.gate == nullptr ? 1.0f : sorted.gate[slot];
    const float* row = rows.data + rows.place_of(slot);
    for (int64_t j = 0; j < rows.width; ++j) buffer[j] = factor * row[j];
  }
}

constexpr int64_t kTurnedFloats = 1 << 14;  // of a gradient that is turned as a whole: stays in L2

// The gradient of the weights of an expert: Σ over its rows of narrow (N) times wide (M), which is
// (N, M), or (M, N) if it is `turned`. narrow(r, count) are those of sorted rows r .. r + count,
// one after the other; rows of `wide` are read where they lie, unless a large gradient is turned.
// It `adds` to the target as a whole, so that the bits are those of gradients that were added.
template <typename Narrow>
inline void weight_gradient(const Sorted& sorted, int64_t e, int64_t width, const SlotRows& wide,
                            bool turned, float* target, bool adds, const Narrow& narrow) {
  const int64_t last = sorted.offsets[e + 1], size = width * wide.width;
  int64_t r = sorted.offsets[e];
  if (adds && r == last) return;
  const bool copies = turned && size > kTurnedFloats, turns = turned && !copies;
  const bool apart = turns || (adds && last - r > kDepth);  // a longer product adds in parts
  const int64_t copied = copies ? kBlockRows * wide.width : 0;
  float* const rows = scratch(1, copied + (apart ? size : 0));
  float* const sum = apart ? rows + copied : target;
  int64_t places[kBlockRows];
  Finish finish;
  finish.accumulate = adds && !apart;
  do {  // once without rows, for zeros
    const int64_t count = std::min(kBlockRows, last - r);
    const float* left = narrow(r, count);
    const Matrix right = wide.of(sorted, r, count, places);
    if (copies) {
      for (int64_t i = 0; i < count; ++i)
        std::memcpy(rows + i * wide.width, right[i], wide.width * sizeof(float));
      multiply(wide.width, width, count, {rows, 1, wide.width}, {left, width, 1}, sum, width,
               finish);
    } else {
      multiply(width, wide.width, count, {left, 1, width}, right, sum, wide.width, finish);
    }
    finish.accumulate = true;
    r += kBlockRows;
  } while (r < last);
  if (!apart) return;
  if (!turns) return add_row(target, sum, size);
  for (int64_t i = 0; i < width; i += kLanes)
    for (int64_t j = 0; j < wide.width; j += kLanes) {
      __m512 column[kLanes];
      columns_of(sum + i * wide.width + j, wide.width, std::min(kLanes, width - i),
                 mask_of(wide.width - j), column);
      const __mmask16 mask = mask_of(width - i);
      for (int64_t t = 0; t < std::min(kLanes, wide.width - j); ++t) {
        float* const out = target + (j + t) * width + i;
        _mm512_mask_storeu_ps(
            out, mask,
            adds ? _mm512_add_ps(_mm512_maskz_loadu_ps(mask, out), column[t]) : column[t]);
      }
    }
}

// The gradients of x, weight and gate, undefined where not needed.
inline variable_list expert_linear_backward(const Tensor& gradient, const Tensor& x,
                                            const Tensor& weight, const Tensor& order,
                                            const Tensor& offsets,
                                            const std::optional<Tensor>& gate, int64_t slots_in,
                                            int64_t slots_out, std::array<bool, 3> needs) {
  const int64_t in = weight.size(1), out = weight.size(2);
  const Sorted sorted(order, offsets, gate);
  const float* w = read(weight);
  const SlotRows inputs(read(x), in, slots_in), grads(read(gradient), out, slots_out);
  Tensor d_x, d_weight, d_gate;
  if (needs[2]) d_gate = at::zeros({order.size(0)}, x.options());
  if (needs[0]) d_x = at::zeros_like(x);
  float* to_gate = needs[2] ? write(d_gate) : nullptr;
  float* to_x = needs[0] ? write(d_x) : nullptr;
  if (needs[0] || needs[2]) {
    share_rows(x.size(0), slots_in, in * out, [&](int64_t from, int64_t to) {
      float* products = scratch(0, kBlockRows * in);
      int64_t places[kBlockRows], targets[kBlockRows];
      for_blocks(sorted, from, to, [&](int64_t e, int64_t r, int64_t count) {
        const Matrix a = grads.of(sorted, r, count, places);
        inputs.of(sorted, r, count, targets);
        multiply_rows(count, in, out, a, {w + e * in * out, 1, out}, products, in, {},
                      [&](int64_t first, int64_t some, const float* one) {
                        const int64_t next = first + some, coming = std::min(some, count - next);
                        ask_for_rows({inputs.data, in, 1, targets + next}, coming, in);
                        if (to_x != nullptr)
                          ask_for_rows({to_x, in, 1, targets + next}, coming, in);
                        for (int64_t i = first; i < next; ++i, one += in) {
                          const int64_t slot = sorted.order[r + i];
                          if (to_gate != nullptr) to_gate[slot] = dot(one, inputs.data + targets[i], in);
                          if (to_x != nullptr)
                            add_row(to_x + targets[i], one, in,
                                    sorted.gate == nullptr ? 1.0f : sorted.gate[slot]);
                        }
                      });
      });
    });
  }
  if (needs[1]) {
    GradientSum sum(weight);
    float* to_weight = sum.data();
    const bool first = in < out;  // the gate is multiplied with the narrower side
    const SlotRows &narrow = first ? inputs : grads, &wide = first ? grads : inputs;
    share_experts(sorted, in * out, [&](int64_t e) {
      float* buffer = scratch(0, kBlockRows * narrow.width);
      weight_gradient(sorted, e, narrow.width, wide, !first, to_weight + e * in * out, sum.adds(),
                      [&](int64_t r, int64_t count) {
                        copy_gated(sorted, r, count, narrow, buffer);
                        return buffer;
                      });
    });
    d_weight = sum.handed_on();
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
  const SlotRows inputs(read(x), width, top_k);
  const float *w_up = read(up), *w_down = read(down);
  float *target = write(result), *to_kept = write(kept);
  share_rows(tokens, top_k, width * hidden, [&](int64_t from, int64_t to) {
    float *products = scratch(0, kBlockRows * width), *hiddens = scratch(1, kBlockRows * hidden);
    float gates[kBlockRows];
    int64_t places[kBlockRows];
    for_blocks(sorted, from, to, [&](int64_t e, int64_t r, int64_t count) {
      const Matrix a = inputs.of(sorted, r, count, places);
      float* h = keep ? to_kept + r * hidden : hiddens;
      Finish first, second;
      first.relu = true;
      multiply(count, hidden, width, a, {w_up + e * width * hidden, hidden, 1}, h, hidden, first);
      second.scale = gates_of(sorted, r, count, gates);
      multiply_rows(count, width, hidden, {h, hidden, 1}, {w_down + e * width * hidden, width, 1},
                    products, width, second,
                    [&](int64_t i, int64_t some, const float* rows) {
                      add_to(target, places, i, some, count, rows, width);
                    });
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
  const SlotRows inputs(read(x), width, top_k), grads(read(gradient), width, top_k);
  const float *w_up = read(up), *w_down = read(down), *h = read(kept);
  Tensor d_x, d_up, d_down, d_gate, d_hidden = at::empty({sorted.routed(), hidden}, x.options());
  if (needs[3]) d_gate = at::zeros({order.size(0)}, x.options());
  if (needs[0]) d_x = at::zeros_like(x);
  float *z = write(d_hidden), *to_gate = needs[3] ? write(d_gate) : nullptr;
  float* to_x = needs[0] ? write(d_x) : nullptr;
  share_rows(tokens, top_k, size, [&](int64_t from, int64_t to) {
    float* products = scratch(0, kBlockRows * width);
    float gates[kBlockRows];
    int64_t places[kBlockRows];
    for_blocks(sorted, from, to, [&](int64_t e, int64_t r, int64_t count) {
      const Matrix a = grads.of(sorted, r, count, places);
      const float* factors = gates_of(sorted, r, count, gates);
      Finish finish;
      finish.positive = h + r * hidden;  // what the ReLU passed, and where h is not 0
      multiply(count, hidden, width, a, {w_down + e * size, 1, width}, z + r * hidden, hidden,
               finish);
      for (int64_t i = 0; i < count; ++i) {
        float* row = z + (r + i) * hidden;
        if (to_gate != nullptr)
          to_gate[sorted.order[r + i]] = dot(row, h + (r + i) * hidden, hidden);
        if (factors != nullptr)
          for (int64_t j = 0; j < hidden; ++j) row[j] *= factors[i];
      }
      if (to_x == nullptr) return;
      multiply_rows(count, width, hidden, {z + r * hidden, hidden, 1}, {w_up + e * size, 1, hidden},
                    products, width, {}, [&](int64_t i, int64_t some, const float* rows) {
                      add_to(to_x, places, i, some, count, rows, width);
                    });
    });
  });
  if (needs[1]) {
    GradientSum sum(up);
    float* to_up = sum.data();
    share_experts(sorted, size, [&](int64_t e) {
      weight_gradient(sorted, e, hidden, inputs, true, to_up + e * size, sum.adds(),
                      [&](int64_t r, int64_t) { return z + r * hidden; });
    });
    d_up = sum.handed_on();
  }
  if (needs[2]) {
    GradientSum sum(down);
    float* to_down = sum.data();
    share_experts(sorted, size, [&](int64_t e) {
      float* gated = scratch(0, kBlockRows * hidden);
      weight_gradient(sorted, e, hidden, grads, false, to_down + e * size, sum.adds(),
                      [&](int64_t r, int64_t count) {
                        for (int64_t i = 0; i < count; ++i) {
                          const float factor =
                              sorted.gate == nullptr ? 1.0f : sorted.gate[sorted.order[r + i]];
                          for (int64_t j = 0; j < hidden; ++j)
                            gated[i * hidden + j] = factor * h[(r + i) * hidden + j];
                        }
                        return gated;
                      });
    });
    d_down = sum.handed_on();
  }
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
