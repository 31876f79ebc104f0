// Embedding, norms and dense products.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <string>

#include <hadal/comm/communicator.h>

#include "cpu_ops.h"
#include "row_io.h"

namespace hadal::cpu {

void require(const char* op, const Status& status) {
  if (!status) {
    HADAL_CHECK(false, std::string(op) + ": " + status.error().message);
  }
}

CpuOps::CpuOps(const KernelTable& kernels, int32_t num_threads, bool e4m3_latents)
    : kernels_(kernels),
      e4m3_latents_(e4m3_latents),
      pool_(num_threads),
      scratch_(static_cast<size_t>(num_threads)) {}

void CpuOps::begin_step(const BatchGeometry& /*geometry*/, Stream& /*stream*/) {}

void CpuOps::embed(const EmbedArgs& args, Stream& /*stream*/) {
  require("embed", check(args));
  const int64_t hidden = args.table.shape[1];
  for_rows(args.tokens.shape[0], hidden, [&](int64_t m, int32_t thread) {
    int64_t token = args.tokens.as<int32_t>()[m];
    if (token < 0) {
      HADAL_CHECK(!args.last_tokens.empty(), "embed: a token is not known and last_tokens is none");
      token = args.last_tokens.as<int32_t>()[args.token_slots.as<int32_t>()[m]];
    }
    float* row = scratch(thread).row.at_least(hidden);
    const int64_t local = token - args.vocab_begin;
    if (local >= 0 && local < args.table.shape[0]) {
      load_row(kernels_, args.table, local, 0, hidden, row);
    } else {
      std::fill(row, row + hidden, 0.0F);
    }
    store_row(kernels_, args.out, m, 0, hidden, row);
  });
}

void CpuOps::add_norm(const AddNormArgs& args, Stream& stream) {
  require("add_norm", check(args));
  if (args.comm != nullptr && args.comm->world_size() > 1) {
    args.comm->all_reduce_sum(args.addend, stream);
  }
  const int64_t hidden = args.residual.shape[1];
  float* weight = inputs_.at_least(hidden);
  load_row(kernels_, ConstTensorView(args.weight), 0, 0, hidden, weight);
  for_rows(args.residual.shape[0], hidden * 4, [&](int64_t m, int32_t thread) {
    float* x = scratch(thread).row.at_least(2 * hidden);
    float* added = x + hidden;
    if (args.overwrite_residual) {
      load_row(kernels_, args.addend, m, 0, hidden, x);
    } else {
      load_row(kernels_, args.residual, m, 0, hidden, x);
      if (!args.addend.empty()) {
        load_row(kernels_, args.addend, m, 0, hidden, added);
        for (int64_t i = 0; i < hidden; ++i) {
          x[i] += added[i];
        }
      }
    }
    if (!args.addend.empty()) {
      store_row(kernels_, args.residual, m, 0, hidden, x);
      load_row(kernels_, args.residual, m, 0, hidden, x);  // as the next layer will read it
    }
    const float mean = kernels_.sum_of_squares(x, hidden) / static_cast<float>(hidden);
    const float factor = 1.0F / std::sqrt(mean + args.eps);
    for (int64_t i = 0; i < hidden; ++i) {
      x[i] = x[i] * factor * weight[i];
    }
    store_activation(kernels_, args.out, m, 0, hidden, x);
    if (!args.out_plain.empty()) {
      store_row(kernels_, args.out_plain, m, 0, hidden, x);
    }
  });
}

const float* const* CpuOps::rows_of(const ConstActivationView& x,
                                    Scratch<float>& memory,
                                    Scratch<const float*>& pointers) {
  const int64_t num_rows = x.values.shape[0];
  const int64_t columns = x.values.shape[1];
  const float** rows = pointers.at_least(num_rows);
  if (x.format == ActFormat::f32) {
    for (int64_t m = 0; m < num_rows; ++m) {
      rows[m] = x.values.row<float>(m);
    }
    return rows;
  }
  float* data = memory.at_least(num_rows * columns);
  for_rows(num_rows, columns, [&](int64_t m, int32_t /*thread*/) {
    load_activation_row(kernels_, x, m, data + m * columns);
    rows[m] = data + m * columns;
  });
  return rows;
}

const float* CpuOps::gemm_tile(const PanelMatrix& matrix,
                               int64_t panel_begin,
                               int64_t panel_count,
                               const float* const* rows,
                               int64_t num_rows,
                               int32_t thread) {
  ThreadScratch& s = scratch(thread);
  PanelGemm gemm;
  gemm.matrix = &matrix;
  gemm.panel_begin = panel_begin;
  gemm.panel_count = panel_count;
  gemm.rows = rows;
  gemm.num_rows = num_rows;
  gemm.out = s.tile.at_least(kMaxGemmRows * kMaxPanels * kLanes);
  gemm.out_stride = panel_count * kLanes;
  gemm.scratch = s.weights.at_least(kMaxGroup * kMaxPanels * kLanes);
  kernels_.panel_gemm(gemm);
  return gemm.out;
}

void CpuOps::matmul(const PanelMatrix& matrix,
                    const float* const* rows,
                    int64_t num_rows,
                    const TensorView& out) {
  const int64_t columns = out.shape[1];
  const int64_t panel_groups = (matrix.num_panels + kMaxPanels - 1) / kMaxPanels;
  const int64_t row_blocks = (num_rows + kMaxGemmRows - 1) / kMaxGemmRows;
  pool_.run(panel_groups * row_blocks, [&](int64_t task, int32_t thread) {
    const int64_t panel = task % panel_groups * kMaxPanels;
    const int64_t panels = std::min(kMaxPanels, matrix.num_panels - panel);
    const int64_t row_begin = task / panel_groups * kMaxGemmRows;
    const int64_t row_count = std::min(kMaxGemmRows, num_rows - row_begin);
    const float* tile = gemm_tile(matrix, panel, panels, rows + row_begin, row_count, thread);
    const int64_t column = panel * kLanes;
    const int64_t count = std::min(panels * kLanes, columns - column);
    for (int64_t m = 0; m < row_count; ++m) {
      store_row(kernels_, out, row_begin + m, column, count, tile + m * panels * kLanes);
    }
  });
}

void CpuOps::linear(const LinearArgs& args, Stream& /*stream*/) {
  require("linear", check(args));
  const float* const* rows = rows_of(args.x, inputs_, pointers_);
  matmul(cpu_weight(args.weight).matrices[0].matrix(), rows, args.x.values.shape[0], args.out);
}

void CpuOps::lm_head(const LmHeadArgs& args, Stream& /*stream*/) {
  require("lm_head", check(args));
  const int64_t wanted = args.rows.shape[0];
  const int64_t hidden = args.x.values.shape[1];
  const float** rows = pointers_.at_least(wanted);
  float* data = inputs_.at_least(wanted * hidden);
  for (int64_t i = 0; i < wanted; ++i) {
    load_activation_row(kernels_, args.x, args.rows.as<int32_t>()[i], data + i * hidden);
    rows[i] = data + i * hidden;
  }
  matmul(cpu_weight(args.weight).matrices[0].matrix(), rows, wanted, args.out);
}

void CpuOps::gate_up_columns(const PanelMatrix& matrix,
                             const float* const* rows,
                             const int32_t* out_rows,
                             int64_t num_rows,
                             int64_t column,
                             int64_t count,
                             const ActivationView& out,
                             int32_t thread) {
  constexpr int64_t kPairColumns = kMaxPanels / 2 * kLanes;
  const int64_t intermediate = out.values.shape[1];
  float* products = scratch(thread).slots.at_least(kMaxGemmRows * kQuantGroup);
  for (int64_t begin = 0; begin < count; begin += kPairColumns) {
    const int64_t panel = (column + begin) / kLanes * 2;
    const int64_t panels = std::min(kMaxPanels, matrix.num_panels - panel);
    const float* tile = gemm_tile(matrix, panel, panels, rows, num_rows, thread);
    for (int64_t m = 0; m < num_rows; ++m) {
      for (int64_t p = 0; p < panels; p += 2) {
        const float* gate = tile + (m * panels + p) * kLanes;
        float* y = products + m * kQuantGroup + begin + p / 2 * kLanes;
        kernels_.silu_mul(gate, gate + kLanes, y, kLanes);
      }
    }
  }
  const int64_t valid = std::min(count, intermediate - column);
  for (int64_t m = 0; m < num_rows; ++m) {
    const int64_t row = out_rows == nullptr ? m : out_rows[m];
    store_activation(kernels_, out, row, column, valid, products + m * kQuantGroup);
  }
}

void CpuOps::gate_up(const GateUpArgs& args, Stream& /*stream*/) {
  require("gate_up", check(args));
  const PanelMatrix& matrix = cpu_weight(args.weight).matrices[0].matrix();
  const float* const* rows = rows_of(args.x, inputs_, pointers_);
  const int64_t num_rows = args.x.values.shape[0];
  // A task covers whole quantisation groups when the output has them.
  const int64_t width = args.out.format == ActFormat::e4m3 ? kQuantGroup : kQuantGroup / 4;
  const int64_t groups = (args.out.values.shape[1] + width - 1) / width;
  const int64_t row_blocks = (num_rows + kMaxGemmRows - 1) / kMaxGemmRows;
  pool_.run(groups * row_blocks, [&](int64_t task, int32_t thread) {
    const int64_t row = task / groups * kMaxGemmRows;
    const int64_t count = std::min(kMaxGemmRows, num_rows - row);
    const int64_t column = task % groups * width;
    const int64_t columns = std::min(width, args.out.values.shape[1] - column);
    gate_up_columns(
        matrix, rows + row, nullptr, count, column, columns, args.out.rows(row, count), thread);
  });
}

}  // namespace hadal::cpu
