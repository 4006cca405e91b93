// The kernel of decode.cpp, which includes this once for every instruction set: GCC lowers vector types before it clones
// functions, so that target_clones would leave them narrow. Nothing here may be shared between the copies.

INLINE void fetch(Vector& to, const float* p) { std::memcpy(&to, p, sizeof to); }
INLINE void fetch(Vector& to, const uint16_t* p) {  // bfloat16
  Halves halves;
  std::memcpy(&halves, p, sizeof halves);
  const Words words = __builtin_convertvector(halves, Words) << 16;
  std::memcpy(&to, &words, sizeof to);
}

// The sum of a vector, by halves.
INLINE float sum(const Vector& x) {
  typedef float Eight __attribute__((vector_size(32)));
  typedef float Four __attribute__((vector_size(16)));
  Eight low, high;
  std::memcpy(&low, &x, 32);
  std::memcpy(&high, reinterpret_cast<const char*>(&x) + 32, 32);
  low += high;
  Four a, b;
  std::memcpy(&a, &low, 16);
  std::memcpy(&b, reinterpret_cast<const char*>(&low) + 16, 16);
  a += b;
  return (a[0] + a[2]) + (a[1] + a[3]);
}

// Asks for the memory of slots [from, to) before it is needed.
template <typename T>
INLINE void expect(const T* store, int64_t step, int64_t from, int64_t to) {
  const char *p = reinterpret_cast<const char*>(store + from * step), *end = reinterpret_cast<const char*>(store + to * step);
  for (; p < end; p += 64) __builtin_prefetch(p);
}

// Scores of G queries (D floats each, side by side) against the keys of slots [from, to): out[g * stride + slot].
template <int G, typename T>
INLINE void score(const float* q, const T* keys, int64_t step, int64_t size, int64_t from, int64_t to, float* out,
                  int64_t stride) {
  for (int64_t s = from; s < to; s++) {
    Vector sums[G] = {};
    for (int64_t d = 0; d < size; d += WIDTH) {
      Vector key;
      fetch(key, keys + s * step + d);
      for (int g = 0; g < G; g++) {
        Vector query;
        fetch(query, q + g * size + d);
        sums[g] += query * key;
      }
    }
    for (int g = 0; g < G; g++) out[g * stride + s] = sum(sums[g]);
  }
}

// Adds the values of slots [from, to), weighted, to G outputs (D floats each, side by side).
template <int G, typename T>
INLINE void mix(const float* weights, int64_t stride, const T* values, int64_t step, int64_t size, int64_t from,
                int64_t to, float* out) {
  for (int64_t d = 0; d < size; d += WIDTH) {
    Vector sums[G];
    for (int g = 0; g < G; g++) fetch(sums[g], out + g * size + d);
    for (int64_t s = from; s < to; s++) {
      Vector value;
      fetch(value, values + s * step + d);
      for (int g = 0; g < G; g++) sums[g] += value * weights[g * stride + s];
    }
    for (int g = 0; g < G; g++) std::memcpy(out + g * size + d, &sums[g], sizeof sums[g]);
  }
}

// The queries of one key head, up to four at a time, so that their sums stay in registers.
#define FOUR_AT_A_TIME(count, CALL)                   \
  for (int64_t g = 0; g < (count);) {                 \
    const int64_t left = (count) - g;                 \
    if (left >= 4) { CALL(4); g += 4; }               \
    else if (left == 3) { CALL(3); g += 3; }          \
    else if (left == 2) { CALL(2); g += 2; }          \
    else { CALL(1); g += 1; }                         \
  }

// weights = softmax(scale * scores) of slots [from, to); not yet divided: returns one over their sum.
INLINE float soften(float* scores, int64_t from, int64_t to, float scale) {
  float top = scores[from];
  for (int64_t s = from; s < to; s++) top = scores[s] > top ? scores[s] : top;
  float lanes[WIDTH] = {0};
  int64_t s = from;
  for (; s + WIDTH <= to; s += WIDTH)
    for (int i = 0; i < WIDTH; i++) {
      const float weight = shim::exponential((scores[s + i] - top) * scale);
      scores[s + i] = weight;
      lanes[i] += weight;
    }
  float sum = shim::total(lanes);
  for (; s < to; s++) {
    scores[s] = shim::exponential((scores[s] - top) * scale);
    sum += scores[s];
  }
  return 1.0f / sum;
}

template <typename T>
INLINE void attend_rows(const T* q, const T* keys, const T* values, const int64_t* newest, T* out, const Sizes& z,
                        float* room, int64_t from, int64_t to) {
  const int64_t group = z.heads / z.kv_heads, step = z.kv_heads * z.size, width = z.heads * z.size;
  float *query = room, *sums = room + width, *scores = room + 2 * width;  // [H, D], [H, D], [H, capacity]
  for (int64_t row = from; row < to; row++) {
    const int64_t end = newest[row] + 1, start = z.window && z.window < end ? end - z.window : 0;
    const T *k = keys + row * z.capacity * step, *v = values + row * z.capacity * step;
    for (int64_t i = 0; i < width; i++) query[i] = shim::load(q + row * width + i);
    for (int64_t i = 0; i < width; i++) sums[i] = 0.0f;
    for (int64_t s = start; s < end; s += SLOTS) {
      if (s + SLOTS < end) expect(k, step, s + SLOTS, s + 2 * SLOTS < end ? s + 2 * SLOTS : end);
      else expect(v, step, start, start + SLOTS < end ? start + SLOTS : end);
      for (int64_t h = 0; h < z.kv_heads; h++) {
#define SCORE(G)                                                                                            \
  score<G>(query + (h * group + g) * z.size, k + h * z.size, step, z.size, s, s + SLOTS < end ? s + SLOTS : end, \
           scores + (h * group + g) * z.capacity, z.capacity)
        FOUR_AT_A_TIME(group, SCORE)
      }
    }
    for (int64_t h = 0; h < z.heads; h++) {
      // The query's own vector is spent: its first number keeps one over the sum of weights.
      query[h * z.size] = soften(scores + h * z.capacity, start, end, z.scale);
    }
    for (int64_t s = start; s < end; s += SLOTS) {
      if (s + SLOTS < end) expect(v, step, s + SLOTS, s + 2 * SLOTS < end ? s + 2 * SLOTS : end);
      for (int64_t h = 0; h < z.kv_heads; h++) {
#define MIX(G)                                                                                             \
  mix<G>(scores + (h * group + g) * z.capacity, z.capacity, v + h * z.size, step, z.size, s,               \
         s + SLOTS < end ? s + SLOTS : end, sums + (h * group + g) * z.size)
        FOUR_AT_A_TIME(group, MIX)
      }
    }
    for (int64_t h = 0; h < z.heads; h++)
      for (int64_t d = 0; d < z.size; d++)
        shim::store(out + row * width + h * z.size + d, sums[h * z.size + d] * query[h * z.size]);
  }
}

static void attend(const float* q, const float* k, const float* v, const int64_t* newest, float* out, const Sizes& z,
                   float* room, int64_t from, int64_t to) {
  attend_rows(q, k, v, newest, out, z, room, from, to);
}
static void attend(const uint16_t* q, const uint16_t* k, const uint16_t* v, const int64_t* newest, uint16_t* out,
                   const Sizes& z, float* room, int64_t from, int64_t to) {
  attend_rows(q, k, v, newest, out, z, room, from, to);
}

#undef FOUR_AT_A_TIME
#undef SCORE
#undef MIX
