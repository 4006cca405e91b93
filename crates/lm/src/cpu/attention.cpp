// Attention for training on a CPU, after Dao et al. 2022: forward keeps the scores' normalisers only, backward makes the
// probabilities anew from them (their appendix B.2), and both work in tiles that stay in the caches. Sequences lie end to end and
// nothing is padded; a tile's small products are libtorch's, oneDNN's `brgemm`. libtorch's own kernels for this pad, and run far
// below the machine's rate in bfloat16 without AMX.
#include <ATen/Parallel.h>
#include <ATen/native/CPUBlas.h>
#include <torch/csrc/autograd/custom_function.h>

#include <algorithm>
#include <atomic>
#include <limits>
#include <vector>

#include "shim.h"

namespace {

using at::Tensor;
using shim::f32;
using shim::load;
using shim::store;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// Queries and keys of one tile.
constexpr int64_t ROWS = 32, KEYS = 64;

// How many neighbouring rows of a product's second factor lie interleaved: pairs in bfloat16.
template <typename T>
constexpr int64_t SIDE = sizeof(T) == 2 ? 2 : 1;

// c [m, n] = a [m, k] b [k, n], or added to c; b is interleaved. Rows of a and c are `a_step` and `c_step` apart.
INLINE void product(int64_t m, int64_t n, int64_t k, const float* a, int64_t a_step, const float* b, float* c, int64_t c_step,
                    bool add) {
  at::native::cpublas::brgemm(m, n, k, a_step, n, c_step, add, a, b, c, false);
}
INLINE void product(int64_t m, int64_t n, int64_t k, const uint16_t* a, int64_t a_step, const uint16_t* b, float* c,
                    int64_t c_step, bool add) {
  const auto wide = [](const uint16_t* x) { return reinterpret_cast<const at::BFloat16*>(x); };
  at::native::cpublas::brgemm(m, n, k, a_step, n, c_step, add, wide(a), wide(b), c, true);
}

// Has this machine such products? libtorch says no by an error.
template <typename T>
bool has_products() {
  static const bool yes = [] {
    try {
      std::vector<T> a(ROWS * KEYS), b(KEYS * KEYS);
      std::vector<float> c(ROWS * KEYS);
      product(ROWS, KEYS, KEYS, a.data(), KEYS, b.data(), c.data(), KEYS, false);
      at::native::cpublas::brgemm_release(SIDE<T> == 2);
      return true;
    } catch (const std::exception&) {
      return false;
    }
  }();
  return yes;
}

// Calls `work` with the numbers below `items` from all threads, each taking the next when it is done.
template <typename F>
void share(int64_t items, bool interleaved, F&& work) {
  std::atomic<int64_t> next{0};
  at::parallel_for(0, std::min<int64_t>(items, at::get_num_threads()), 1, [&](int64_t, int64_t) {
    work([&] { return next.fetch_add(1); });
    at::native::cpublas::brgemm_release(interleaved);
  });
}

// Rows [0, there) of [count, size], `step` apart, densely; zeros behind them.
template <typename T>
void copy_rows(const T* from, int64_t step, int64_t there, int64_t count, int64_t size, T* to) {
  for (int64_t n = 0; n < there; n++) std::memcpy(to + n * size, from + n * step, size * sizeof(T));
  std::memset(static_cast<void*>(to + there * size), 0, (count - there) * size * sizeof(T));
}

// Dense rows [count, size] as a second factor [count, size], interleaved.
#define INTERLEAVE(T) (const T* from, int64_t count, int64_t size, T* to)
CLONES void interleave_f32 INTERLEAVE(float) { std::memcpy(to, from, count * size * sizeof(float)); }
CLONES void interleave_bf16 INTERLEAVE(uint16_t) {
  for (int64_t n = 0; n < count; n += 2)
    for (int64_t d = 0; d < size; d++) {
      const uint32_t pair = from[n * size + d] | static_cast<uint32_t>(from[(n + 1) * size + d]) << 16;
      std::memcpy(to + (n * size + 2 * d), &pair, 4);
    }
}
void interleave INTERLEAVE(float) { interleave_f32(from, count, size, to); }
void interleave INTERLEAVE(uint16_t) { interleave_bf16(from, count, size, to); }

// Dense rows [count, size] transposed as a second factor [size, count], interleaved: pairs stay together.
template <typename T>
void turn(const T* from, int64_t count, int64_t size, T* to) {
  using Unit = std::conditional_t<SIDE<T> == 2, uint32_t, float>;
  const int64_t units = size / SIDE<T>;
  for (int64_t n = 0; n < count; n++)
    for (int64_t d = 0; d < units; d++) std::memcpy(to + (d * count + n) * SIDE<T>, from + n * size + d * SIDE<T>, sizeof(Unit));
}

// What the tokens of one sequence see: their past; of that the trunk (branch 0) and their own branch; of that what lies less than
// `window` positions behind, unless it is 0. Without branches and window all of the past.
struct Sight {
  const int32_t *branches, *positions;  // null: all of the past
  int32_t window;

  // Sees no query of [q, q + queries) any key of [k, k + keys)? Branches follow each other.
  bool hidden(int64_t q, int64_t k, int64_t keys) const {
    return branches && branches[k] > 0 && branches[k + keys - 1] < branches[q];
  }
};

// Scores [seen] of query `at` become probabilities, not yet divided by their sum, [keys] in T with zeros behind `seen`. Returns the
// sum and the largest score; (0, 0) for a query that sees nothing.
template <typename T>
INLINE std::pair<float, float> soften(float* s, const Sight& sight, int64_t at, int64_t keys, float scale, T* p) {
  constexpr float LOW = -std::numeric_limits<float>::infinity();
  const int64_t seen = at + 1, whole = seen / shim::LANES * shim::LANES;
  if (sight.branches) {
    const int32_t own = sight.branches[at], oldest = sight.window ? sight.positions[at] - sight.window : -1;
    for (int64_t j = 0; j < seen; j++) {
      const bool sees = ((sight.branches[j] == 0) | (sight.branches[j] == own)) & (sight.positions[j] > oldest);
      s[j] = sees ? s[j] * scale : LOW;
    }
  } else {
    for (int64_t j = 0; j < seen; j++) s[j] *= scale;
  }
  float tops[shim::LANES], sums[shim::LANES] = {0};
  for (float& top : tops) top = LOW;
  for (int64_t j = 0; j < whole; j += shim::LANES)
    for (int i = 0; i < shim::LANES; i++) tops[i] = s[j + i] > tops[i] ? s[j + i] : tops[i];
  float top = LOW;
  for (float t : tops) top = t > top ? t : top;
  for (int64_t j = whole; j < seen; j++) top = s[j] > top ? s[j] : top;
  if (top == LOW) {
    std::memset(static_cast<void*>(p), 0, keys * sizeof(T));
    return {0.0f, 0.0f};
  }
  for (int64_t j = 0; j < whole; j += shim::LANES)
    for (int i = 0; i < shim::LANES; i++) {
      const float e = shim::exponential(s[j + i] - top);
      store(p + j + i, e);
      sums[i] += e;
    }
  float sum = shim::total(sums);
  for (int64_t j = whole; j < seen; j++) {
    const float e = shim::exponential(s[j] - top);
    store(p + j, e);
    sum += e;
  }
  std::memset(static_cast<void*>(p + seen), 0, (keys - seen) * sizeof(T));
  return {sum, top};
}

// Queries [first, first + count) of one head: scores [count, keys] to probabilities, their sums and the logs of these.
#define SOFTEN(T) \
  (float* s, const Sight& sight, int64_t first, int64_t count, int64_t keys, float scale, T* p, float* sums, float* lse)
#define SOFTEN_BODY                                                                                   \
  for (int64_t r = 0; r < count; r++) {                                                               \
    const auto [sum, top] = soften(s + r * keys, sight, first + r, keys, scale, p + r * keys);        \
    sums[r] = sum;                                                                                    \
    lse[r] = sum > 0.0f ? top + std::log(sum) : 0.0f;                                                 \
  }
CLONES void soften_f32 SOFTEN(float) { SOFTEN_BODY }
CLONES void soften_bf16 SOFTEN(uint16_t) { SOFTEN_BODY }
void soften_rows SOFTEN(float) { soften_f32(s, sight, first, count, keys, scale, p, sums, lse); }
void soften_rows SOFTEN(uint16_t) { soften_bf16(s, sight, first, count, keys, scale, p, sums, lse); }

// Rows of sums [count, size], each divided, to rows `step` apart.
#define DIVIDE(T) (const float* o, const float* sums, int64_t count, int64_t size, T* out, int64_t step)
#define DIVIDE_BODY                                                                     \
  for (int64_t r = 0; r < count; r++) {                                                 \
    const float by = sums[r] > 0.0f ? 1.0f / sums[r] : 0.0f;                            \
    for (int64_t d = 0; d < size; d++) store(out + r * step + d, o[r * size + d] * by); \
  }
CLONES void divide_f32 DIVIDE(float) { DIVIDE_BODY }
CLONES void divide_bf16 DIVIDE(uint16_t) { DIVIDE_BODY }
void divide DIVIDE(float) { divide_f32(o, sums, count, size, out, step); }
void divide DIVIDE(uint16_t) { divide_bf16(o, sums, count, size, out, step); }

// A tile of queries in the backward pass.
struct Queries {
  int64_t first, count;
  float lse[ROWS], delta[ROWS];  // delta: the sum of a query's output times its gradient
};

// Scores and probabilities' gradients of a block of keys from `key` on, both [KEYS, ROWS] (transposed), become probabilities and
// scores' gradients in T.
template <typename T>
INLINE void one_block(const float* s, const float* dp, const Sight& sight, const Queries& q, int64_t key, float scale, T* p,
                      T* ds) {
  int32_t own[ROWS] = {0}, oldest[ROWS];
  for (int32_t& o : oldest) o = -1;
  if (sight.branches)
    for (int64_t r = 0; r < q.count; r++) {
      own[r] = sight.branches[q.first + r];
      if (sight.window) oldest[r] = sight.positions[q.first + r] - sight.window;
    }
  const int64_t end = std::min(KEYS, q.first + q.count - key);  // none of these queries sees a key behind
  for (int64_t j = 0; j < end; j++) {
    const int32_t branch = sight.branches ? sight.branches[key + j] : 0, position = sight.branches ? sight.positions[key + j] : 0;
    const int32_t from = static_cast<int32_t>(key + j - q.first), to = static_cast<int32_t>(q.count);
    for (int32_t r = 0; r < ROWS; r++) {
      const bool sees = (r >= from) & (r < to) & ((branch == 0) | (branch == own[r])) & (position > oldest[r]);
      const float e = sees ? shim::exponential(s[j * ROWS + r] * scale - q.lse[r]) : 0.0f;
      store(p + j * ROWS + r, e);
      store(ds + j * ROWS + r, e * (dp[j * ROWS + r] - q.delta[r]) * scale);
    }
  }
  std::memset(static_cast<void*>(p + end * ROWS), 0, (KEYS - end) * ROWS * sizeof(T));
  std::memset(static_cast<void*>(ds + end * ROWS), 0, (KEYS - end) * ROWS * sizeof(T));
}

#define BLOCK(T) \
  (const float* s, const float* dp, const Sight& sight, const Queries& q, int64_t key, float scale, T* p, T* ds)
CLONES void block_f32 BLOCK(float) { one_block(s, dp, sight, q, key, scale, p, ds); }
CLONES void block_bf16 BLOCK(uint16_t) { one_block(s, dp, sight, q, key, scale, p, ds); }
void block_of BLOCK(float) { block_f32(s, dp, sight, q, key, scale, p, ds); }
void block_of BLOCK(uint16_t) { block_bf16(s, dp, sight, q, key, scale, p, ds); }

// Sums of products of two tiles of rows [count, size].
#define DOTS(T) (const T* a, int64_t a_step, const T* b, int64_t b_step, int64_t count, int64_t size, float* out)
#define DOTS_BODY                                                                                     \
  for (int64_t r = 0; r < count; r++) {                                                               \
    float lanes[shim::LANES] = {0}, sum = 0;                                                          \
    const int64_t whole = size / shim::LANES * shim::LANES;                                           \
    for (int64_t d = 0; d < whole; d += shim::LANES)                                                  \
      for (int i = 0; i < shim::LANES; i++) lanes[i] += load(a + r * a_step + d + i) * load(b + r * b_step + d + i); \
    for (int64_t d = whole; d < size; d++) sum += load(a + r * a_step + d) * load(b + r * b_step + d); \
    out[r] = shim::total(lanes) + sum;                                                                \
  }
CLONES void dots_f32 DOTS(float) { DOTS_BODY }
CLONES void dots_bf16 DOTS(uint16_t) { DOTS_BODY }
void dots DOTS(float) { dots_f32(a, a_step, b, b_step, count, size, out); }
void dots DOTS(uint16_t) { dots_bf16(a, a_step, b, b_step, count, size, out); }

// Sequences that lie end to end.
struct Sequences {
  std::vector<int64_t> start, length, blocks_before;  // blocks of keys of the sequences before each
  std::vector<std::pair<int64_t, int64_t>> tiles;     // (sequence, first query)
  const int32_t* places;                              // [2, N]: branches, positions; or null
  int64_t tokens;
  int32_t window;

  Sequences(const Tensor& lengths, const Tensor& places, int64_t window)
      : places(places.defined() ? static_cast<int32_t*>(places.data_ptr()) : nullptr), tokens(0), window(window) {
    const int64_t* l = static_cast<int64_t*>(lengths.data_ptr());
    int64_t blocks = 0;
    for (int64_t b = 0; b < lengths.numel(); b++) {
      start.push_back(tokens);
      length.push_back(l[b]);
      blocks_before.push_back(blocks);
      for (int64_t first = 0; first < l[b]; first += ROWS) tiles.emplace_back(b, first);
      tokens += l[b];
      blocks += blocks_of(b);
    }
    blocks_before.push_back(blocks);
  }

  int64_t blocks_of(int64_t b) const { return (length[b] + KEYS - 1) / KEYS; }
  Sight sight(int64_t b) const {
    if (!places) return {nullptr, nullptr, 0};
    return {places + start[b], places + tokens + start[b], window};
  }
};

template <typename T>
T* data(const Tensor& x) {
  return static_cast<T*>(x.data_ptr());
}

// Row `token` of head `head` of x [N, h, D].
template <typename T>
T* at_row(const Tensor& x, int64_t token, int64_t head) {
  return data<T>(x) + token * x.stride(0) + head * x.stride(1);
}

// q [N, H, D], k and v [N, KVH, D]: the output [N, H, D] and the log of every query's sum of weights [H, N].
template <typename T>
std::tuple<Tensor, Tensor> forward_tiles(const Tensor& q, const Tensor& k, const Tensor& v, const Sequences& z, float scale) {
  const int64_t h = q.size(1), d = q.size(2), kv = k.size(1), group = h / kv, block = KEYS * d;
  Tensor turned = at::empty({2, z.blocks_before.back() * kv * block}, q.options());
  T *keys = data<T>(turned), *values = keys + z.blocks_before.back() * kv * block;
  const int64_t sequences = z.start.size();
  share(sequences * kv, SIDE<T> == 2, [&](auto next) {
    std::vector<T> rows(block);
    for (int64_t n; (n = next()) < sequences * kv;) {
      const int64_t b = n / kv, head = n % kv, to = (z.blocks_before[b] * kv + head * z.blocks_of(b)) * block;
      for (int64_t i = 0; i < z.blocks_of(b); i++) {
        const int64_t there = std::min(KEYS, z.length[b] - i * KEYS), token = z.start[b] + i * KEYS;
        copy_rows(at_row<T>(k, token, head), k.stride(0), there, KEYS, d, rows.data());
        turn(rows.data(), KEYS, d, keys + to + i * block);
        copy_rows(at_row<T>(v, token, head), v.stride(0), there, KEYS, d, rows.data());
        interleave(rows.data(), KEYS, d, values + to + i * block);
      }
    }
  });
  Tensor out = at::empty({z.tokens, h, d}, q.options()), lse = at::empty({h, z.tokens}, q.options().dtype(at::kFloat));
  const int64_t longest = *std::max_element(z.length.begin(), z.length.end()), width = (longest + KEYS - 1) / KEYS * KEYS;
  const int64_t items = z.tiles.size() * h;
  share(items, SIDE<T> == 2, [&](auto next) {
    std::vector<T> query(ROWS * d), weights(ROWS * width);
    std::vector<float> scores(ROWS * width), sums(ROWS * d), totals(ROWS);
    for (int64_t n; (n = next()) < items;) {
      const auto [b, first] = z.tiles[n / h];
      const int64_t head = n % h, token = z.start[b] + first, count = std::min(ROWS, z.length[b] - first);
      const int64_t near = (first + count + KEYS - 1) / KEYS, wide = near * KEYS;
      const int64_t stored = (z.blocks_before[b] * kv + head / group * z.blocks_of(b)) * block;
      const Sight sight = z.sight(b);
      const auto skips = [&](int64_t i) { return sight.hidden(first, i * KEYS, std::min(KEYS, z.length[b] - i * KEYS)); };
      copy_rows(at_row<T>(q, token, head), q.stride(0), count, ROWS, d, query.data());
      for (int64_t i = 0; i < near; i++)
        if (!skips(i))
          product(ROWS, KEYS, d, query.data(), d, keys + stored + i * block, scores.data() + i * KEYS, wide, false);
      soften_rows(scores.data(), sight, first, count, wide, scale, weights.data(), totals.data(),
                  f32(lse) + head * z.tokens + token);
      bool add = false;
      for (int64_t i = 0; i < near; i++)
        if (!skips(i)) {
          product(ROWS, d, KEYS, weights.data() + i * KEYS, wide, values + stored + i * block, sums.data(), d, add);
          add = true;
        }
      divide(sums.data(), totals.data(), count, d, at_row<T>(out, token, head), out.stride(0));
    }
  });
  return {out, lse};
}

// Gradients of q, k and v, shaped like them; g [N, H, D] is the output's.
template <typename T>
std::tuple<Tensor, Tensor, Tensor> backward_tiles(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& out,
                                                  const Tensor& lse, const Tensor& g, const Sequences& z, float scale) {
  const int64_t h = q.size(1), d = q.size(2), kv = k.size(1), group = h / kv;
  Tensor dq = at::empty({z.tokens, h, d}, q.options()), dk = at::empty({z.tokens, kv, d}, q.options()), dv = at::empty_like(dk);
  const int64_t longest = *std::max_element(z.length.begin(), z.length.end()), width = (longest + KEYS - 1) / KEYS * KEYS;
  const int64_t items = z.start.size() * kv;
  const std::vector<float> ones(KEYS, 1.0f);
  share(items, SIDE<T> == 2, [&](auto next) {
    std::vector<T> keys(width * d), values(width * d), across(width * d);  // [T, D], [T, D], and by block [D, KEYS]
    std::vector<float> of_keys(width * d), of_values(width * d), of_query(d * ROWS), straight(ROWS * d);
    std::vector<T> row(ROWS * d), query(ROWS * d), queries(ROWS * d), slope(ROWS * d), slopes(ROWS * d);
    std::vector<float> s(KEYS * ROWS), dp(KEYS * ROWS);
    std::vector<T> p(KEYS * ROWS), ds(KEYS * ROWS), beside(KEYS * ROWS);
    for (int64_t n; (n = next()) < items;) {
      const int64_t b = n / kv, head = n % kv, length = z.length[b], padded = z.blocks_of(b) * KEYS;
      const Sight sight = z.sight(b);
      copy_rows(at_row<T>(k, z.start[b], head), k.stride(0), length, padded, d, keys.data());
      copy_rows(at_row<T>(v, z.start[b], head), v.stride(0), length, padded, d, values.data());
      for (int64_t i = 0; i < padded; i++)
        for (int64_t c = 0; c < d; c++) across[(i / KEYS * d + c) * KEYS + i % KEYS] = keys[i * d + c];
      std::fill_n(of_keys.begin(), padded * d, 0.0f);
      std::fill_n(of_values.begin(), padded * d, 0.0f);
      for (int64_t of_head = head * group; of_head < (head + 1) * group; of_head++)
        for (int64_t first = 0; first < length; first += ROWS) {
          Queries tile{first, std::min(ROWS, length - first), {0}, {0}};
          const int64_t token = z.start[b] + first;
          std::copy_n(f32(lse) + of_head * z.tokens + token, tile.count, tile.lse);
          dots(at_row<T>(g, token, of_head), g.stride(0), at_row<T>(out, token, of_head), out.stride(0), tile.count, d,
               tile.delta);
          copy_rows(at_row<T>(q, token, of_head), q.stride(0), tile.count, ROWS, d, row.data());
          turn(row.data(), ROWS, d, query.data());         // [D, ROWS]
          interleave(row.data(), ROWS, d, queries.data());  // [ROWS, D]
          copy_rows(at_row<T>(g, token, of_head), g.stride(0), tile.count, ROWS, d, row.data());
          turn(row.data(), ROWS, d, slope.data());
          interleave(row.data(), ROWS, d, slopes.data());
          std::fill(of_query.begin(), of_query.end(), 0.0f);
          for (int64_t key = 0; key < first + tile.count; key += KEYS) {
            if (sight.hidden(first, key, std::min(KEYS, length - key))) continue;
            product(KEYS, ROWS, d, keys.data() + key * d, d, query.data(), s.data(), ROWS, false);
            product(KEYS, ROWS, d, values.data() + key * d, d, slope.data(), dp.data(), ROWS, false);
            block_of(s.data(), dp.data(), sight, tile, key, scale, p.data(), ds.data());
            interleave(ds.data(), KEYS, ROWS, beside.data());
            product(KEYS, d, ROWS, p.data(), ROWS, slopes.data(), of_values.data() + key * d, d, true);
            product(KEYS, d, ROWS, ds.data(), ROWS, queries.data(), of_keys.data() + key * d, d, true);
            product(d, ROWS, KEYS, across.data() + key * d, KEYS, beside.data(), of_query.data(), ROWS, true);
          }
          for (int64_t c = 0; c < d; c++)
            for (int64_t r = 0; r < ROWS; r++) straight[r * d + c] = of_query[c * ROWS + r];
          divide(straight.data(), ones.data(), tile.count, d, at_row<T>(dq, token, of_head), dq.stride(0));
        }
      for (int64_t i = 0; i < length; i++) {
        divide(of_keys.data() + i * d, ones.data(), 1, d, at_row<T>(dk, z.start[b] + i, head), 0);
        divide(of_values.data() + i * d, ones.data(), 1, d, at_row<T>(dv, z.start[b] + i, head), 0);
      }
    }
  });
  return {dq, dk, dv};
}

struct Attention : torch::autograd::Function<Attention> {
  static Tensor forward(AutogradContext* ctx, const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& lengths,
                        const std::optional<Tensor>& places, int64_t window, double scale) {
    const Sequences z(lengths, places.value_or(Tensor()), window);
    const float s = static_cast<float>(scale);
    auto [out, lse] = shim::narrow(q) ? forward_tiles<uint16_t>(q, k, v, z, s) : forward_tiles<float>(q, k, v, z, s);
    ctx->save_for_backward({q, k, v, out, lse, lengths, places.value_or(Tensor())});
    ctx->saved_data["window"] = window;
    ctx->saved_data["scale"] = scale;
    return out;
  }

  static variable_list backward(AutogradContext* ctx, variable_list gradients) {
    const auto saved = ctx->get_saved_variables();
    const Tensor &q = saved[0], &k = saved[1], &v = saved[2], &out = saved[3], &lse = saved[4];
    const Sequences z(saved[5], saved[6], ctx->saved_data["window"].toInt());
    const float s = static_cast<float>(ctx->saved_data["scale"].toDouble());
    const Tensor g = gradients[0].contiguous();
    auto [dq, dk, dv] = shim::narrow(q) ? backward_tiles<uint16_t>(q, k, v, out, lse, g, z, s)
                                        : backward_tiles<float>(q, k, v, out, lse, g, z, s);
    return {dq, dk, dv, Tensor(), Tensor(), Tensor(), Tensor()};
  }
};

}  // namespace

extern "C" {

// Can attention run here in bfloat16, or in float32?
bool idiolect_attends(bool narrow) { return narrow ? has_products<uint16_t>() : has_products<float>(); }

// q [N, H, D], k and v [N, KVH, D] of one type, D even: sequences of `lengths` [B] (int64) end to end. A query sees its past in its
// sequence; with `places` [2, N] (int32: branch and position of each token, branches in order) of that the trunk, branch 0, and its
// own branch, and with a window that many positions, its own included. Returns [N, H, D].
Tensor* idiolect_attention(const Tensor* q, const Tensor* k, const Tensor* v, const Tensor* lengths, const Tensor* places,
                           int64_t window, double scale, char* message, size_t capacity) {
  return shim::guarded(message, capacity, [&] {
    const auto dense = [](const Tensor& x) { return x.stride(2) == 1 ? x : x.contiguous(); };
    TORCH_CHECK(q->dim() == 3 && q->size(2) % 2 == 0 && q->size(1) % k->size(1) == 0 && k->sizes() == v->sizes());
    TORCH_CHECK(q->size(0) == k->size(0) && q->size(2) == k->size(2) && window >= 0 && (places || window == 0));
    TORCH_CHECK(q->scalar_type() == k->scalar_type() && q->scalar_type() == v->scalar_type());
    TORCH_CHECK(lengths->is_contiguous() && lengths->scalar_type() == at::kLong && lengths->sum().item<int64_t>() == q->size(0));
    TORCH_CHECK(!places || (places->is_contiguous() && places->scalar_type() == at::kInt && places->numel() == 2 * q->size(0)));
    const std::optional<Tensor> seen = places ? std::optional<Tensor>(*places) : std::nullopt;
    return Attention::apply(dense(*q), dense(*k), dense(*v), *lengths, seen, window, scale);
  });
}
}
