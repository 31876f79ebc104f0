// Residual add and RMSNorm: the op between two sublayers, with the all-reduce of a row-parallel
// linear and the quantisation of the next linear's input folded in.
//
//   sum      = addend summed over the ranks of comm
//   residual = residual + sum
//   out      = residual / sqrt(mean(residual^2) + eps) * weight        (float32; in out's format)
#pragma once

#include <cstdint>

#include <hadal/base/result.h>
#include <hadal/tensor/activation.h>
#include <hadal/tensor/tensor.h>

namespace hadal {

class Communicator;

struct AddNormArgs {
  /// [M, H] f32 or bf16: this rank's part of what is added; clobbered when comm is set. Absent =
  /// nothing is added.
  TensorView addend{};
  Communicator* comm = nullptr;  ///< sums addend over its ranks first; null = addend is complete
  TensorView residual{};         ///< [M, H] f32 or bf16, read and updated
  /// The residual's old value counts as zero (the first norm after a vocabulary-parallel embedding
  /// that was written to addend).
  bool overwrite_residual = false;
  ConstTensorView weight{};  ///< [H] f32 or bf16
  float eps = 1e-6F;
  ActivationView out{};    ///< [M, H] normalised, any format
  TensorView out_plain{};  ///< [M, H] f32 or bf16: the same, for the router; optional
};

Status check(const AddNormArgs& args);

}  // namespace hadal
