// One new token per sequence attends to its cached keys and values where they lie in the pool: no gather.
//
// The queries that share a KV head go together, so that a key or value is read and converted once for all of them.
// Softmax is online, in float. A long sequence is cut into parts of PART tokens counted from its own first seen token;
// the parts are merged in order. So a sequence's result has the same bits in any batch and at any number of threads.

#include <algorithm>
#include <vector>

#include "attention.h"
#include "attention_bf16.h"
#include "isa.h"
#include "team.h"

namespace pdq {
namespace {

constexpr int64_t CHUNK = 16;    // tokens between two looks at the maximum; never across blocks
constexpr int64_t GROUP = 4;     // queries whose sums are held in registers at once

template <class T>
struct Sequence {
    const T *keys, *values;  // of the KV head, in block 0
    int64_t block_stride, block_size, head_dim;
    const int32_t* table;
};

// f<1>() ... f<GROUP>(), by how many queries of the group are left: a constant number of sums stays in registers.
#define PDQ_BY_WIDTH(FUNCTION, ...)                   \
    for (int64_t g = 0; g < group; g += GROUP) {      \
        switch (std::min(GROUP, group - g)) {         \
            case 1: FUNCTION<T, 1>(__VA_ARGS__); break; \
            case 2: FUNCTION<T, 2>(__VA_ARGS__); break; \
            case 3: FUNCTION<T, 3>(__VA_ARGS__); break; \
            case 4: FUNCTION<T, 4>(__VA_ARGS__); break; \
        }                                             \
    }

// scores[g][t] = query g . key t, of `count` <= CHUNK consecutive tokens
template <class T, int WIDTH>
void chunk_scores(const T* keys, int64_t count, const float* queries, int64_t head_dim, float (*scores)[CHUNK]) {
    for (int64_t t = 0; t < count; t++) {
        const T* key = keys + t * head_dim;
        __m256 sums[WIDTH];
#pragma GCC unroll 4
        for (int i = 0; i < WIDTH; i++) sums[i] = _mm256_setzero_ps();
        for (int64_t d = 0; d < head_dim; d += 8) {
            const __m256 part = load8(key + d);
#pragma GCC unroll 4
            for (int i = 0; i < WIDTH; i++)
                sums[i] = _mm256_fmadd_ps(part, load8(queries + i * head_dim + d), sums[i]);
        }
#pragma GCC unroll 4
        for (int i = 0; i < WIDTH; i++) scores[i][t] = sum8(sums[i]);
    }
}

// values[g] = values[g] * kept[g] + sum over t of weights[g][t] * value t
template <class T, int WIDTH>
void add_values(const T* cached, int64_t count, const float (*weights)[CHUNK], const float* kept, int64_t head_dim,
                float* values) {
    for (int64_t d = 0; d < head_dim; d += 8) {
        __m256 sums[WIDTH];
#pragma GCC unroll 4
        for (int i = 0; i < WIDTH; i++)
            sums[i] = _mm256_mul_ps(load8(values + i * head_dim + d), _mm256_broadcast_ss(kept + i));
        for (int64_t t = 0; t < count; t++) {
            const __m256 value = load8(cached + t * head_dim + d);
#pragma GCC unroll 4
            for (int i = 0; i < WIDTH; i++)
                sums[i] = _mm256_fmadd_ps(_mm256_broadcast_ss(&weights[i][t]), value, sums[i]);
        }
#pragma GCC unroll 4
        for (int i = 0; i < WIDTH; i++) store8(values + i * head_dim + d, sums[i]);
    }
}

// Tokens [first, end) of a sequence. scratch: [group][CHUNK] scores, [group] kept
template <class T>
void attend(const Sequence<T>& seq, int64_t first, int64_t end, const float* queries, int64_t group, SoftmaxState state,
            float* scratch) {
    auto scores = reinterpret_cast<float (*)[CHUNK]>(scratch);
    float* kept = scratch + group * CHUNK;
    for (int64_t g = 0; g < group; g++) state.maximum[g] = -INFINITY, state.sum[g] = 0.0f;
    std::fill(state.values, state.values + group * seq.head_dim, 0.0f);
    for (int64_t token = first; token < end;) {
        const int64_t block = token / seq.block_size, place = token % seq.block_size;
        const int64_t count = std::min({CHUNK, end - token, seq.block_size - place});
        const int64_t offset = seq.table[block] * seq.block_stride + place * seq.head_dim;
        PDQ_BY_WIDTH(chunk_scores, seq.keys + offset, count, queries + g * seq.head_dim, seq.head_dim, scores + g)
        for (int64_t g = 0; g < group; g++) {
            for (int64_t t = count; t < CHUNK; t++) scores[g][t] = -INFINITY;
            const __m256 low = load8(scores[g]), high = load8(scores[g] + 8);
            const float maximum = std::max(state.maximum[g], max8(_mm256_max_ps(low, high)));
            const __m256 top = _mm256_set1_ps(maximum);
            const __m256 low_weights = exp8(_mm256_sub_ps(low, top)), high_weights = exp8(_mm256_sub_ps(high, top));
            kept[g] = _mm256_cvtss_f32(exp8(_mm256_set1_ps(state.maximum[g] - maximum)));
            state.maximum[g] = maximum;
            state.sum[g] = state.sum[g] * kept[g] + sum8(_mm256_add_ps(low_weights, high_weights));
            store8(scores[g], low_weights);
            store8(scores[g] + 8, high_weights);
        }
        PDQ_BY_WIDTH(add_values, seq.values + offset, count, scores + g, kept + g, seq.head_dim,
                     state.values + g * seq.head_dim)
        token += count;
    }
}

template <class T>
void merge(const float* states, int64_t parts, int64_t state_size, int64_t group, int64_t g, int64_t head_dim, T* out) {
    // A state lies [group] maxima, [group] sums, [group][head_dim] values; the next one `state_size` floats on.
    float maximum = -INFINITY, sum = 0.0f;
    for (int64_t part = 0; part < parts; part++) maximum = std::max(maximum, states[part * state_size + g]);
    thread_local std::vector<float> factors;
    factors.resize(parts);
    for (int64_t part = 0; part < parts; part++) {
        const float* state = states + part * state_size;
        factors[part] = _mm256_cvtss_f32(exp8(_mm256_set1_ps(state[g] - maximum)));
        sum += state[group + g] * factors[part];
    }
    const __m256 norm = _mm256_set1_ps(1.0f / sum);
    for (int64_t d = 0; d < head_dim; d += 8) {
        __m256 total = _mm256_setzero_ps();
        for (int64_t part = 0; part < parts; part++) {
            const float* values = states + part * state_size + 2 * group + g * head_dim;
            total = _mm256_fmadd_ps(load8(values + d), _mm256_set1_ps(factors[part]), total);
        }
        store8(out + d, _mm256_mul_ps(total, norm));
    }
}

template <class T>
void attend_scaled(const Sequence<T>& seq, int64_t first, int64_t end, const T* queries, int64_t group, float scale,
                   SoftmaxState state) {
    thread_local std::vector<float> mine;
    mine.resize(group * (seq.head_dim + CHUNK + 1));
    for (int64_t i = 0; i < group * seq.head_dim; i += 8)
        store8(mine.data() + i, _mm256_mul_ps(load8(queries + i), _mm256_set1_ps(scale)));
    attend(seq, first, end, mine.data(), group, state, mine.data() + group * seq.head_dim);
}

}  // namespace

void attend_part(const CachedHead& head, int64_t first, int64_t end, const BFloat16* queries, int64_t group,
                 float scale, SoftmaxState state) {
    if (isa() >= AVX512_BF16 && head.head_dim % 32 == 0) return attend_part_bf16(head, first, end, queries, group, scale, state);
    attend_scaled<BFloat16>({head.keys, head.values, head.block_stride, head.block_size, head.head_dim, head.table}, first,
                            end, queries, group, scale, state);
}

void merge_parts(const float* states, int64_t parts, int64_t stride, int64_t group, int64_t g, int64_t head_dim,
                 BFloat16* out) {
    merge(states, parts, stride, group, g, head_dim, out);
}

namespace {

inline void attend_any(const Sequence<BFloat16>& seq, int64_t first, int64_t end, const BFloat16* queries,
                       int64_t group, float scale, SoftmaxState state) {
    attend_part({seq.keys, seq.values, seq.block_stride, seq.block_size, seq.head_dim, seq.table}, first, end, queries,
                group, scale, state);
}

inline void attend_any(const Sequence<float>& seq, int64_t first, int64_t end, const float* queries, int64_t group,
                       float scale, SoftmaxState state) {
    attend_scaled(seq, first, end, queries, group, scale, state);
}

template <class T>
void attention_decode(const T* q, int64_t q_seq_stride, int64_t q_head_stride, const T* key_cache,
                      const T* value_cache, int64_t block_stride, const int32_t* tables, int64_t table_stride,
                      const int32_t* lens, T* out, int64_t seqs, int64_t heads, int64_t kv_heads, int64_t block_size,
                      int64_t head_dim, float scale, int64_t window) {
    const int64_t group = heads / kv_heads;
    const int64_t state_size = group * (head_dim + 2);
    struct Task {
        int64_t seq, head, first, end;
    };
    thread_local std::vector<Task> tasks;
    thread_local std::vector<int64_t> firsts;  // of each (sequence, KV head): its first task
    thread_local std::vector<float> states;
    tasks.clear();
    firsts.clear();
    for (int64_t seq = 0; seq < seqs; seq++) {
        const int64_t seen = window > 0 ? std::max<int64_t>(0, lens[seq] - window) : 0;
        for (int64_t head = 0; head < kv_heads; head++) {
            firsts.push_back(tasks.size());
            for (int64_t first = seen; first < lens[seq]; first += DECODE_PART)
                tasks.push_back({seq, head, first, std::min<int64_t>(first + DECODE_PART, lens[seq])});
        }
    }
    firsts.push_back(tasks.size());
    states.resize(tasks.size() * state_size);
    // The team sees its starter's buffers, not its own of the same name.
    const Task* const task_list = tasks.data();
    const int64_t* const first_list = firsts.data();
    float* const state_list = states.data();
    const int64_t num_tasks = tasks.size();
    Team::of_process().run([=](Crew& crew) {
        crew.each(num_tasks, [=](int64_t i) {
            const Task& task = task_list[i];
            thread_local std::vector<T> mine;
            mine.resize(group * head_dim);
            for (int64_t g = 0; g < group; g++)
                std::memcpy(mine.data() + g * head_dim,
                            q + task.seq * q_seq_stride + (task.head * group + g) * q_head_stride,
                            head_dim * sizeof(T));
            const int64_t of_head = task.head * block_size * head_dim;
            const Sequence<T> seq{key_cache + of_head, value_cache + of_head, block_stride, block_size, head_dim,
                                  tables + task.seq * table_stride};
            float* state = state_list + i * state_size;
            attend_any(seq, task.first, task.end, mine.data(), group, scale, {state, state + group, state + 2 * group});
        });
        crew.each(seqs * kv_heads, [=](int64_t i) {
            for (int64_t g = 0; g < group; g++)
                merge(state_list + first_list[i] * state_size, first_list[i + 1] - first_list[i], state_size, group, g,
                      head_dim,
                      out + (i * group + g) * head_dim);
        });
    });
}

}  // namespace
}  // namespace pdq

#define PDQ_ATTENTION_DECODE(NAME, T)                                                                                \
    PDQ_EXPORT void pdq_attention_decode_##NAME(                                                                     \
        const T* q, int64_t q_seq_stride, int64_t q_head_stride, const T* key_cache, const T* value_cache,           \
        int64_t block_stride, const int32_t* tables, int64_t table_stride, const int32_t* lens, T* out, int64_t seqs,\
        int64_t heads, int64_t kv_heads, int64_t block_size, int64_t head_dim, float scale, int64_t window) {        \
        pdq::attention_decode(q, q_seq_stride, q_head_stride, key_cache, value_cache, block_stride, tables,          \
                              table_stride, lens, out, seqs, heads, kv_heads, block_size, head_dim, scale, window);  \
    }

PDQ_ATTENTION_DECODE(bf16, pdq::BFloat16)
PDQ_ATTENTION_DECODE(f32, float)
