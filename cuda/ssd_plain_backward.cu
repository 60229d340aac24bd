#include <cstdint>

#include "cuda/ssd_plain.cuh"

// Backward in float32 arithmetic, for every shape and alignment. A block has one chunk of one sequence and walks a few
// heads of one group, in squares of 64 x 64 pairs of steps (i, j):
//   K = C B^T, Theta = dy x^T, L_ij = exp(c_i - c_j), M = K L dt_j, V = K L Theta, dK = L dt_j Theta.
// dx_j = sum_i M_ij dy_i; dB = dK^T C and dC = dK B are added up over heads in partial_bc; the gradient of the log
// decay of step t is the sum of V_ij dt_j over i >= t > j, by exclusive sums along rows, then sums along columns.

namespace graft::cuda::ssd {
namespace {

struct Shared {
  Panels panels;
  float dt[kChunk], decay[kChunk], slope[kChunk];
  float direct[kChunk];  // gradient of dt other than through decays
  float ds[kChunk];      // gradient of the log decay
  float before[kChunk];  // exp(c_i) <dy_i, h C_i>
  float after[kChunk];   // exp(c_Q - c_j) <x_j, R B_j>
  float row_sums[kBlock];
  Square weights[kChunkBlocks];  // M of the squares below one another
  Square square;
};

template <class T>
__global__ void __launch_bounds__(kPlainThreads) gradients_kernel(const Gradients<T> p) {
  extern __shared__ __align__(128) unsigned char shared[];
  auto& s = *reinterpret_cast<Shared*>(shared);
  const Source<T>& in = p.in;
  const int thread = static_cast<int>(threadIdx.x);
  const int head_blocks = in.heads / p.head_block;
  const int block = static_cast<int>(blockIdx.x) % head_blocks;
  const int chunk = static_cast<int>(blockIdx.x) / head_blocks % in.chunks;
  const std::int64_t sequence = static_cast<int>(blockIdx.x) / head_blocks / in.chunks;
  const int valid = in.valid(chunk);
  const int squares = (valid + kBlock - 1) / kBlock;
  const std::int64_t row0 = sequence * in.tokens + std::int64_t{chunk} * kChunk;
  const std::int64_t partial_row = std::int64_t{head_blocks} * 2 * in.state;
  float* const partial_b = p.partial_bc + row0 * partial_row + std::int64_t{block} * 2 * in.state;
  float* const partial_c = partial_b + in.state;
  for (int i = thread; i < valid * 2 * in.state; i += kPlainThreads) {
    partial_b[i / (2 * in.state) * partial_row + i % (2 * in.state)] = 0.F;
  }

  for (int h = 0; h < p.head_block; ++h) {
    const int head = block * p.head_block + h;
    const ChunkReader<T> at(in, sequence, chunk, head);
    const std::int64_t state = ((sequence * in.chunks + chunk) * in.heads + head) * in.head_dim * in.state;
    const float* const before = p.ends.has_before(chunk) ? p.ends.before + state : nullptr;
    const float* const after = p.ends.has_after(chunk, in.chunks) ? p.ends.after + state : nullptr;
    const std::int64_t column0 = std::int64_t{head} * in.head_dim;
    const auto dy = [&](int step, int channel) { return at.dy(p.dy, step, channel); };
    // Adds to 64 rows of dB or dC, columns from n0 on.
    const auto add_partial = [&](float* to, int first, int n0, const Elements& sum) {
      for_each_element([&](int r, int c, int row, int column) {
        if (first + row < valid && n0 + column < in.state) {
          to[(first + row) * partial_row + n0 + column] += sum[r][c];
        }
      });
    };

    if (thread < kWarp) warp_steps(in, sequence, chunk, head, s.dt, s.decay, s.slope);
    if (thread < kChunk) s.direct[thread] = s.ds[thread] = s.before[thread] = s.after[thread] = 0.F;
    __syncthreads();
    const float total = s.decay[kChunk - 1];

    for (int j_square = 0; j_square < squares; ++j_square) {
      const int j0 = j_square * kBlock;
      for (int i_square = j_square; i_square < squares; ++i_square) {
        const int i0 = i_square * kBlock;
        Elements key = {}, theta = {};  // [i, j]
        multiply_add<false, false>(
            key, s.panels, in.state, [&](int row, int k) { return at.c(i0 + row, k); },
            [&](int k, int column) { return at.b(j0 + column, k); });
        multiply_add<false, false>(
            theta, s.panels, in.head_dim, [&](int row, int k) { return dy(i0 + row, k); },
            [&](int k, int column) { return at.x(j0 + column, k); });
        for_each_element([&](int r, int c, int row, int column) {
          const float decayed = decay_between(s.decay, i0 + row, j0 + column);
          const float size = s.dt[j0 + column];
          s.weights[i_square - j_square][row][column] = key[r][c] * decayed * size;
          s.square[row][column] = key[r][c] * decayed * theta[r][c];  // V
          theta[r][c] *= decayed * size;                              // dK
        });
        __syncthreads();
        if (thread < kBlock) {
          float sum = 0.F;
          for (int row = 0; row < kBlock; ++row) sum += s.square[row][thread];
          s.direct[j0 + thread] += sum;
        }
        __syncthreads();
        if (thread < kBlock) {
          float sum = 0.F;
          for (int column = 0; column < kBlock; ++column) {
            const float w = s.square[thread][column] * s.dt[j0 + column];
            s.square[thread][column] = sum;  // over earlier columns
            sum += w;
          }
          s.row_sums[thread] = sum;
        }
        __syncthreads();
        const bool diagonal = i_square == j_square;
        if (thread < kBlock) {
          float sum = 0.F;
          for (int row = diagonal ? thread : 0; row < kBlock; ++row) sum += s.square[row][thread];
          s.ds[j0 + thread] += sum;
        } else if (thread < 2 * kBlock && !diagonal) {
          float sum = 0.F;
          for (int row = thread - kBlock; row < kBlock; ++row) sum += s.row_sums[row];
          s.ds[i0 + thread - kBlock] += sum;
        }
        __syncthreads();
        for_each_element([&](int r, int c, int row, int column) { s.square[row][column] = theta[r][c]; });
        for (int n0 = 0; n0 < in.state; n0 += kBlock) {
          Elements of_c = {}, of_b = {};
          multiply_add<false, true>(
              of_c, s.panels, kBlock, [&](int row, int k) { return s.square[row][k]; },
              [&](int k, int column) { return at.b(j0 + k, n0 + column); });
          add_partial(partial_c, i0, n0, of_c);
          multiply_add<true, true>(
              of_b, s.panels, kBlock, [&](int row, int k) { return s.square[k][row]; },
              [&](int k, int column) { return at.c(i0 + k, n0 + column); });
          add_partial(partial_b, j0, n0, of_b);
        }
      }
      for (int p0 = 0; p.dx != nullptr && p0 < in.head_dim; p0 += kBlock) {
        Elements dx = {};
        if (after != nullptr) {
          multiply_add<false, false>(
              dx, s.panels, in.state, [&](int row, int k) { return at.b(j0 + row, k); },
              [&](int k, int column) { return at.state(after, p0 + column, k); });
          for_each_element(
              [&](int r, int c, int row, int) { dx[r][c] *= fast_exp2(total - s.decay[j0 + row]) * s.dt[j0 + row]; });
        }
        for (int i_square = j_square; i_square < squares; ++i_square) {
          multiply_add<true, true>(
              dx, s.panels, kBlock, [&](int row, int k) { return s.weights[i_square - j_square][k][row]; },
              [&](int k, int column) { return dy(i_square * kBlock + k, p0 + column); });
        }
        for_each_element([&](int r, int c, int row, int column) {
          const int channel = p0 + column;
          if (j0 + row >= valid || channel >= in.head_dim) return;
          store_or_add(p.dx + (row0 + j0 + row) * in.row + column0 + channel, p.add_dx,
                       dx[r][c] + in.skip_of(head, channel, in.head_skip(head)) * dy(j0 + row, channel));
        });
      }

      // what states give to these 64 rows of dB and dC
      for (int side = 0; side < 2; ++side) {
        const bool of_b = side == 0;
        const float* const from = of_b ? after : before;
        if (from == nullptr) continue;
        float dot[4] = {};
        for (int n0 = 0; n0 < in.state; n0 += kBlock) {
          Elements sum = {};
          multiply_add<false, true>(
              sum, s.panels, in.head_dim, [&](int row, int k) { return of_b ? at.x(j0 + row, k) : dy(j0 + row, k); },
              [&](int k, int column) { return at.state(from, k, n0 + column); });
          for_each_element([&](int r, int c, int row, int column) {
            const int step = j0 + row;
            dot[r] += sum[r][c] * (of_b ? at.b(step, n0 + column) : at.c(step, n0 + column));
            sum[r][c] *= of_b ? fast_exp2(total - s.decay[step]) * s.dt[step] : fast_exp2(s.decay[step]);
          });
          add_partial(of_b ? partial_b : partial_c, j0, n0, sum);
        }
#pragma unroll
        for (int r = 0; r < 4; ++r) {
          const int step = j0 + own_row(r);
          const float sum = warp_sum<16>(dot[r]);
          if (thread % 16 != 0) continue;
          if (of_b) {
            const float reach = fast_exp2(total - s.decay[step]);
            s.direct[step] += reach * sum;
            s.after[step] = reach * s.dt[step] * sum;
          } else {
            s.before[step] = fast_exp2(s.decay[step]) * sum;
          }
        }
      }

      if (p.dz != nullptr && p.dy != nullptr) {
        for (int p0 = 0; p0 < in.head_dim; p0 += kBlock) {
          Elements y = {};
          add_outputs(y, s.panels, s.square, at, s.dt, s.decay, before, j_square, p0);
          for_each_element([&](int r, int c, int row, int column) {
            const int step = j0 + row;
            const int channel = p0 + column;
            if (step >= valid || channel >= in.head_dim) return;
            const float gradient = to_float(p.dy[(row0 + step) * in.width + column0 + channel]);
            const float value = y[r][c] + in.skip_of(head, channel, in.head_skip(head)) * at.x(step, channel);
            store_or_add(p.dz + (row0 + step) * in.z_row + column0 + channel, p.add_dz,
                         gradient * value * silu_slope(at.z(step, channel)));
          });
        }
      }
    }

    if (p.dz != nullptr && p.dy == nullptr && !p.add_dz) {
      for (int i = thread; i < valid * in.head_dim; i += kPlainThreads) {
        p.dz[(row0 + i / in.head_dim) * in.z_row + column0 + i % in.head_dim] = from_float<T>(0.F);
      }
    }

    float across = 0.F;
    if (before != nullptr && after != nullptr) {
      for (int i = thread; i < in.head_dim * in.state; i += kPlainThreads) across += before[i] * after[i];
    }
    across = block_sum<kPlainThreads>(across) * fast_exp2(total);
    float of_a = 0.F, of_bias = 0.F;
    if (thread < valid) {
      float ds = s.ds[thread] + across;
      float sum = 0.F;
      for (int i = valid - 1; i >= thread; --i) sum += s.before[i];
      ds += sum;
      sum = 0.F;
      for (int j = 0; j < thread; ++j) sum += s.after[j];
      ds += sum;
      of_a = s.dt[thread] * ds;
      of_bias = (s.direct[thread] - expf(in.a_log[head]) * ds) * s.slope[thread];
      if (p.ddt != nullptr) store_or_add(p.ddt + (row0 + thread) * in.dt_row + head, p.add_ddt, of_bias);
    }
    of_a = block_sum<kPlainThreads>(of_a);
    of_bias = block_sum<kPlainThreads>(of_bias);
    const std::int64_t place = sequence * in.chunks + chunk;
    if (thread == 0) {
      p.partial_heads[place * 2 * in.heads + head] = of_a;
      p.partial_heads[(place * 2 + 1) * in.heads + head] = of_bias;
    }
    if (p.partial_skip != nullptr) {
      float all = 0.F;
      for (int channel = thread; channel < in.head_dim; channel += kPlainThreads) {
        float sum = 0.F;
        for (int step = 0; step < valid; ++step) sum += dy(step, channel) * at.x(step, channel);
        if (in.channel_skip) p.partial_skip[place * in.width + column0 + channel] = sum;
        all += sum;
      }
      all = block_sum<kPlainThreads>(all);
      if (thread == 0 && !in.channel_skip) p.partial_skip[place * in.heads + head] = all;
    }
    __syncthreads();  // before the next head overwrites what this one reads
  }
}

}  // namespace

template <class T>
void gradients_plain(cudaStream_t stream, const Gradients<T>& p, std::int64_t batch) {
  launch(gradients_kernel<T>, stream, batch * p.in.chunks * (p.in.heads / p.head_block), kPlainThreads, sizeof(Shared),
         p);
}
template void gradients_plain(cudaStream_t, const Gradients<float>&, std::int64_t);
template void gradients_plain(cudaStream_t, const Gradients<bf16>&, std::int64_t);

}  // namespace graft::cuda::ssd
