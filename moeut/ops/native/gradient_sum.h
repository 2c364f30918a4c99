// The gradient of a weight that many nodes of a graph use, added up where it lies.
//
// Left alone, each node writes a gradient and the engine adds it to the sum of those before, which
// passes over memory four times; experts are many megabytes. Here a node adds to the sum itself
// and hands no gradient on. The sum is the tensor that the first node handed to the engine, which
// goes on to own it: known by a weak reference, so that it is not touched once it is gone. (A hook of
// such a node may look at the gradient, but not keep it and hand on another.)
#pragma once

#include <torch/csrc/autograd/graph_task.h>
#include <torch/csrc/autograd/variable.h>

#include <algorithm>
#include <vector>

#include "tensors.h"

namespace moeut {

class GradientSum {
 public:
  // For the gradient of `weight` in the backward pass that runs in this thread.
  explicit GradientSum(const Tensor& weight) {
    const int task = torch::autograd::get_current_graph_task_id();
    const auto edge = task < 0 ? torch::autograd::Edge() : gradient_edge_of(weight);
    static thread_local std::vector<Known> all;
    all.erase(std::remove_if(all.begin(), all.end(),
                             [&](const Known& one) { return one.task != task || one.sum.expired(); }),
              all.end());
    for (const Known& one : all)
      if (edge.is_valid() && one.node == edge.function.get() && one.input == edge.input_nr) {
        sum_ = Tensor(one.sum.lock());
        adds_ = true;
        return;
      }
    sum_ = at::empty_like(weight);
    if (edge.is_valid())
      all.push_back({edge.function.get(), edge.input_nr, task, Weak(sum_.getIntrusivePtr())});
  }

  float* data() { return write(sum_); }
  // Whether there is something already, to which this gradient is added.
  bool adds() const { return adds_; }
  // What the node returns: nothing if the engine has the sum.
  Tensor handed_on() { return adds_ ? Tensor() : sum_; }

 private:
  using Weak = c10::weak_intrusive_ptr<c10::TensorImpl, c10::UndefinedTensorImpl>;

  struct Known {
    const torch::autograd::Node* node;  // where the engine gathers the gradient
    uint32_t input;
    int task;
    Weak sum;
  };

  static torch::autograd::Edge gradient_edge_of(const Tensor& weight) {
    return weight.requires_grad() ? torch::autograd::impl::gradient_edge(weight)
                                  : torch::autograd::Edge();
  }

  Tensor sum_;
  bool adds_ = false;
};

}  // namespace moeut
