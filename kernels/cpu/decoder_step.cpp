// A whole step of a decoder as one call: the new tokens of some sequences through every layer, keys and values written
// to the pool, and the logits of those that are wanted, or only the largest. Decode is a step with one token per sequence, prefill one with
// many. The twin is engine/model.py over the plain ops table, and values are rounded to bfloat16 where it rounds them.
//
// It is one run of the team: eight sections per layer, so a thread that is late or leaves costs a section, not the step.

#include <algorithm>
#include <vector>

#include "attention.h"
#include "decoder.h"
#include "gate_bf16.h"
#include "isa.h"
#include "rows.h"
#include "scratch.h"
#include "team.h"
#include "largest.h"

namespace pdq {
namespace {

constexpr int64_t TOKENS_AT_ONCE = 8;    // of a task that goes row by row
constexpr int64_t ROWS_AT_ONCE = 64;     // whose products stay in the first caches
constexpr int64_t PANELS_AT_ONCE = 6;    // of a task; 110 KB of weights at 576 inputs, 300 KB at 1536; products like threes
constexpr int64_t TASK_ROWS = 512;       // of a task at most, so that the longest takes about a millisecond

inline int64_t divided_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Activations as the products want them: rows of bfloat16, padded with zeros to whole groups.
struct Rows {
    BFloat16* values;
    int64_t count, size, stride;

    BFloat16* row(int64_t i) const { return values + i * stride; }
};

inline int64_t padded(int64_t size) { return divided_up(size, GROUP) * GROUP; }

inline int64_t head_spans(const Decoder& d) { return divided_up(d.head.matrix.outs, LARGEST_SPAN); }

// One step's buffers. Rows beyond their size are zero from the beginning and never written.
struct Buffers {
    Rows residual, normed, qkv, attended, activated, gate_up, last;
    uint8_t* quantized;
    float* states;
    Largest* spans;  // [answered][head_spans], where the largest logits are asked for

    Buffers(const Decoder& d, const Step& s, int64_t states_size) {
        const int64_t qkv_size = (d.heads + 2 * d.kv_heads) * d.head_dim;
        const bool is_fused = d.intermediate % PANEL == 0;
        const int64_t widest = std::max({d.hidden, d.heads * d.head_dim, d.intermediate});
        const int64_t quantized_bytes = std::max(s.tokens, s.wanted) * quantized_row_bytes(widest);
        struct Wish {
            Rows* rows;
            int64_t count, size;
        } wishes[] = {
            {&residual, s.tokens, d.hidden},
            {&normed, s.tokens, d.hidden},
            {&qkv, s.tokens, qkv_size},
            {&attended, s.tokens, d.heads * d.head_dim},
            {&activated, s.tokens, d.intermediate},
            {&gate_up, is_fused ? 0 : s.tokens, 2 * d.intermediate},
            {&last, s.answered, d.hidden},
        };
        const int64_t num_spans = s.places ? s.answered * head_spans(d) : 0;
        int64_t bytes = Scratch::bytes_of<uint8_t>(quantized_bytes) + Scratch::bytes_of<float>(states_size) +
                        Scratch::bytes_of<Largest>(num_spans);
        for (const Wish& wish : wishes) bytes += Scratch::bytes_of<BFloat16>(wish.count * padded(wish.size));
        scratch().reserve(bytes);
        for (const Wish& wish : wishes) {
            const int64_t stride = padded(wish.size);
            *wish.rows = {scratch().take<BFloat16>(wish.count * stride), wish.count, wish.size, stride};
            if (stride > wish.size)
                for (int64_t i = 0; i < wish.count; i++)
                    std::memset(wish.rows->row(i) + wish.size, 0, (stride - wish.size) * sizeof(BFloat16));
        }
        quantized = scratch().take<uint8_t>(quantized_bytes);
        states = scratch().take<float>(states_size);
        spans = scratch().take<Largest>(num_spans);
    }

    static Scratch& scratch() {
        thread_local Scratch of_caller;
        return of_caller;
    }
};

class Walk {
  public:
    Walk(const Decoder& decoder, const Pool& pool, const Step& step, const Buffers& buffers)
        : d(decoder), pool_(pool), s(step), b(buffers) {}

    // What every thread of the team goes through.
    void go(Crew& crew) const {
        embed(crew);
        for (int64_t index = 0; index < d.num_layers; index++) {
            const Layer& layer = d.layers[index];
            norm(crew, b.residual, layer.input_norm, b.normed);
            linear(crew, b.normed, layer.qkv, [this](int64_t row, int64_t first, int64_t count, const float* c) {
                store(c, count, b.qkv.row(row) + first);
            });
            rotate_and_write(crew, layer, index);
            attend(crew, layer, index);
            linear(crew, b.attended, layer.output, [this](int64_t row, int64_t first, int64_t count, const float* c) {
                add(c, count, b.residual.row(row) + first);
            });
            norm(crew, b.residual, layer.post_norm, b.normed);
            activate(crew, layer);
            linear(crew, b.activated, layer.down, [this](int64_t row, int64_t first, int64_t count, const float* c) {
                add(c, count, b.residual.row(row) + first);
            });
        }
        answer(crew);
    }

  private:
    void embed(Crew& crew) const {
        each_token(crew, [this](int64_t token) {
            std::memcpy(b.residual.row(token), d.embedding + s.token_ids[token] * d.hidden, d.hidden * sizeof(BFloat16));
        });
    }

    void norm(Crew& crew, const Rows& from, const BFloat16* weight, const Rows& to) const {
        each_token(crew, [&](int64_t token) { rms_norm_row(from.row(token), weight, to.row(token), d.hidden, d.eps); });
    }

    // Queries and keys are normed, if the model does that, and rotated where they lie; keys and values go to the pool.
    void rotate_and_write(Crew& crew, const Layer& layer, int64_t index) const {
        each_token(crew, [&](int64_t token) {
            BFloat16* const heads = b.qkv.row(token);
            const int64_t angles = s.positions[token] * d.head_dim;
            for (int64_t head = 0; head < d.heads + d.kv_heads; head++) {
                BFloat16* const at = heads + head * d.head_dim;
                if (const BFloat16* weight = head < d.heads ? layer.query_norm : layer.key_norm)
                    rms_norm_row(at, weight, at, d.head_dim, d.eps);
                rotate_head(at, s.cos + angles, s.sin + angles, at, d.head_dim / 2);
            }
            const int64_t slot = s.slots[token];
            BFloat16* const block = pool_.memory + slot / pool_.block_size * pool_.block_stride + index * pool_.layer_stride;
            for (int64_t head = 0; head < d.kv_heads; head++) {
                BFloat16* const key = block + (head * pool_.block_size + slot % pool_.block_size) * d.head_dim;
                const int64_t bytes = d.head_dim * sizeof(BFloat16);
                std::memcpy(key, heads + (d.heads + head) * d.head_dim, bytes);
                std::memcpy(key + pool_.value_offset, heads + (d.heads + d.kv_heads + head) * d.head_dim, bytes);
            }
        });
    }

    CachedHead cached(int64_t layer, int64_t head, int64_t seq) const {
        const BFloat16* const keys =
            pool_.memory + layer * pool_.layer_stride + head * pool_.block_size * d.head_dim;
        return {keys, keys + pool_.value_offset, pool_.block_stride, pool_.block_size, d.head_dim,
                s.tables + seq * s.table_stride};
    }

    // A task of attention: a part of a lone token's keys, or some of the tokens of a prompt; of one KV head.
    struct Task {
        int64_t seq, first, count;  // of keys for a lone token, else of the sequence's new tokens
    };

    void attend(Crew& crew, const Layer& layer, int64_t index) const {
        const int64_t group = d.heads / d.kv_heads, state_size = group * (d.head_dim + 2);
        const int64_t lone = lone_parts(layer.window), tasks = lone + prompt_tiles(group);
        crew.each(tasks * d.kv_heads, [&](int64_t i) {
            const int64_t head = i % d.kv_heads, place = i / d.kv_heads;
            if (place < lone) {
                const Task task = lone_part(place, layer.window);
                const BFloat16* const queries = b.qkv.row(s.starts[task.seq]) + head * group * d.head_dim;
                float* const state = b.states + i * state_size;
                attend_part(cached(index, head, task.seq), task.first, task.first + task.count, queries, group, d.scale,
                            {state, state + group, state + 2 * group});
            } else {
                const Task task = prompt_tile(place - lone, group);
                const int64_t token = s.starts[task.seq] + task.first, at = head * group * d.head_dim;
                attend_tokens(cached(index, head, task.seq), s.contexts[task.seq] + task.first, task.count,
                              b.qkv.row(token) + at, b.qkv.stride, group, d.scale, layer.window,
                              b.attended.row(token) + at, b.attended.stride);
            }
        });
        if (!lone) return;
        crew.each(s.seqs, [&](int64_t seq) {
            if (num_new(seq) != 1) return;
            int64_t before = 0;
            for (int64_t other = 0; other < seq; other++) before += parts_of(other, layer.window);
            const int64_t parts = parts_of(seq, layer.window);
            for (int64_t head = 0; head < d.kv_heads; head++) {
                // A head's parts lie `kv_heads` states apart.
                const float* const states = b.states + (before * d.kv_heads + head) * state_size;
                BFloat16* const out = b.attended.row(s.starts[seq]) + head * group * d.head_dim;
                for (int64_t g = 0; g < group; g++)
                    merge_parts(states, parts, d.kv_heads * state_size, group, g, d.head_dim, out + g * d.head_dim);
            }
        });
    }

    int64_t num_new(int64_t seq) const { return s.starts[seq + 1] - s.starts[seq]; }

    int64_t first_seen(int64_t seq, int64_t window) const {
        return window > 0 ? std::max<int64_t>(0, s.contexts[seq] + 1 - window) : 0;
    }

    // Of a sequence with one new token: tasks of DECODE_PART keys, from the first that the token sees.
    int64_t parts_of(int64_t seq, int64_t window) const {
        return num_new(seq) == 1 ? divided_up(s.contexts[seq] + 1 - first_seen(seq, window), DECODE_PART) : 0;
    }

    int64_t lone_parts(int64_t window) const {
        int64_t parts = 0;
        for (int64_t seq = 0; seq < s.seqs; seq++) parts += parts_of(seq, window);
        return parts;
    }

    Task lone_part(int64_t place, int64_t window) const {
        int64_t seq = 0;
        while (place >= parts_of(seq, window)) place -= parts_of(seq++, window);
        const int64_t first = first_seen(seq, window) + place * DECODE_PART;
        return {seq, first, std::min(DECODE_PART, s.contexts[seq] + 1 - first)};
    }

    // Of a sequence with several new tokens: tasks of `prefill_tokens` of them.
    int64_t tiles_of(int64_t seq, int64_t group) const {
        return num_new(seq) == 1 ? 0 : divided_up(num_new(seq), prefill_tokens(group));
    }

    int64_t prompt_tiles(int64_t group) const {
        int64_t tiles = 0;
        for (int64_t seq = 0; seq < s.seqs; seq++) tiles += tiles_of(seq, group);
        return tiles;
    }

    Task prompt_tile(int64_t place, int64_t group) const {
        int64_t seq = 0;
        while (place >= tiles_of(seq, group)) place -= tiles_of(seq++, group);
        // The last tokens see most keys: their tasks come first, so that no long one is left for the end.
        const int64_t first = (tiles_of(seq, group) - 1 - place) * prefill_tokens(group);
        return {seq, first, std::min(prefill_tokens(group), num_new(seq) - first)};
    }

    // activated = silu(gate) * up
    void activate(Crew& crew, const Layer& layer) const {
        const int64_t size = d.intermediate;
        if (size % PANEL) {  // a gate and its up are at different places of their panels
            linear(crew, b.normed, layer.gate_up, [this](int64_t row, int64_t first, int64_t count, const float* c) {
                store(c, count, b.gate_up.row(row) + first);
            });
            each_token(crew, [&](int64_t token) {
                silu_mul_row(b.gate_up.row(token), b.gate_up.row(token) + size, b.activated.row(token), size);
            });
            return;
        }
        const Linear& both = layer.gate_up;
        const int64_t panels = size / PANEL;
        products(crew, b.normed, both, panels, 2, [&](int64_t row, int64_t first, int64_t count, const float* c) {
            // Beside each other lie `count` gates and as many ups, to be rounded like any linear's outputs.
            if (isa() >= AVX512_BF16) return silu_mul_bf16(c, c + count, b.activated.row(row) + first, count);
            BFloat16 rounded[2 * PANELS_AT_ONCE * PANEL];
            store(c, 2 * count, rounded);
            silu_mul_row(rounded, rounded + count, b.activated.row(row) + first, count);
        });
    }

    void answer(Crew& crew) const {
        crew.each(s.wanted, [&](int64_t i) {
            const BFloat16* const row = b.residual.row(s.wanted_tokens[i]);
            std::memcpy(s.hidden + i * d.hidden, row, d.hidden * sizeof(BFloat16));
            if (i < s.answered) rms_norm_row(row, d.final_norm, b.last.row(i), d.hidden, d.eps);
        });
        if (!d.head.matrix.panels || s.answered == 0) return;
        const int64_t spans = head_spans(d);
        linear(crew, b.last, d.head, [this, spans](int64_t row, int64_t first, int64_t count, const float* c) {
            static_assert(PANELS_AT_ONCE * PANEL == LARGEST_SPAN);
            BFloat16 rounded[PANELS_AT_ONCE * PANEL];
            store(c, count, rounded);
            if (s.places) b.spans[row * spans + first / LARGEST_SPAN] = largest_of_span(rounded, first, count);
            if (!s.logits) return;
            float* const to = s.logits + row * d.head.matrix.outs + first;
            int64_t i = 0;
            for (; i + 8 <= count; i += 8) store8(to + i, load8(rounded + i));
            if (i < count) store_part(to + i, load_part(rounded + i, count - i), count - i);
        });
        if (!s.places) return;
        crew.each(s.answered, [this, spans](int64_t row) {
            s.logprobs[row] = largest_of_row(b.spans + row * spans, spans, s.places + row);
        });
    }

    // -- products ----------------------------------------------------------------------------------------------------

    template <class Finish>
    void linear(Crew& crew, const Rows& x, const Linear& linear, const Finish& finish) const {
        products(crew, x, linear, linear.matrix.num_panels(), 1, finish);
    }

    // finish(row, first, count, c): outputs [first, first + count) of a row, bias added, and with `parts` 2 the same ones
    // `panels` panels further behind them. `panels` is of one part.
    template <class Finish>
    void products(Crew& crew, const Rows& x, const Linear& linear, int64_t panels, int64_t parts,
                  const Finish& finish) const {
        const Matrix& matrix = linear.matrix;
        const bool is_quantized = matrix.kind != BF16, is_expanded = is_quantized && s.many_rows;
        const int64_t row_bytes = quantized_row_bytes(x.size);
        if (is_quantized && !is_expanded)
            crew.each(divided_up(x.count, TOKENS_AT_ONCE), [&](int64_t i) {
                for (int64_t row = i * TOKENS_AT_ONCE; row < std::min(x.count, (i + 1) * TOKENS_AT_ONCE); row++)
                    tiles().quantize_row(reinterpret_cast<const uint16_t*>(x.row(row)), x.size, b.quantized + row * row_bytes);
            });
        const int64_t at_once = PANELS_AT_ONCE / parts;
        const int64_t groups = divided_up(panels, at_once), blocks = divided_up(x.count, TASK_ROWS);
        crew.each(groups * blocks, [&](int64_t i) {
            const int64_t first = i / blocks * at_once, some = std::min(at_once, panels - first);
            const int64_t begin = i % blocks * TASK_ROWS, end = std::min(x.count, begin + TASK_ROWS);
            const int64_t width = parts * some * PANEL;
            alignas(64) float c[ROWS_AT_ONCE * PANELS_AT_ONCE * PANEL];
            thread_local Scratch expanded;
            const Matrix* from = &matrix;
            Matrix unpacked[2];
            if (is_expanded) {
                const int64_t words = some * padded(matrix.ins) * PANEL;
                expanded.reserve(parts * Scratch::bytes_of<uint16_t>(words));
                for (int64_t part = 0; part < parts; part++) {
                    uint16_t* const to = expanded.take<uint16_t>(words);
                    tiles().expand(matrix, part * panels + first, some, to);
                    unpacked[part] = {reinterpret_cast<const uint8_t*>(to), BF16, matrix.ins, some * PANEL};
                }
            }
            for (int64_t row = begin; row < end; row += ROWS_AT_ONCE) {
                const int64_t rows = std::min(ROWS_AT_ONCE, end - row);
                for (int64_t part = 0; part < parts; part++) {
                    float* const to = c + part * some * PANEL;
                    if (is_expanded)
                        tiles().product(x.row(row), x.stride * 2, rows, unpacked[part], 0, some, to, width);
                    else if (is_quantized)
                        tiles().product(b.quantized + row * row_bytes, row_bytes, rows, *from, part * panels + first,
                                        some, to, width);
                    else
                        tiles().product(x.row(row), x.stride * 2, rows, *from, part * panels + first, some, to, width);
                }
                const int64_t count = std::min(some * PANEL, matrix.outs / parts - first * PANEL);
                for (int64_t r = 0; r < rows; r++) {
                    float* const sums = c + r * width;
                    if (linear.bias)
                        for (int64_t part = 0; part < parts; part++)
                            add_bias(linear.bias + (part * panels + first) * PANEL, count, sums + part * some * PANEL);
                    finish(row + r, first * PANEL, count, sums);
                }
            }
        });
    }

    static void add_bias(const BFloat16* bias, int64_t count, float* sums) {
        int64_t i = 0;
        for (; i + 8 <= count; i += 8) store8(sums + i, _mm256_add_ps(load8(sums + i), load8(bias + i)));
        for (; i < count; i++) sums[i] += _mm256_cvtss_f32(load_part(bias + i, 1));
    }

    static void store(const float* c, int64_t count, BFloat16* to) {
        int64_t i = 0;
        for (; i + 8 <= count; i += 8) store8(to + i, load8(c + i));
        if (i < count) store_part(to + i, load_part(c + i, count - i), count - i);
    }

    // to += c, both rounded
    static void add(const float* c, int64_t count, BFloat16* to) {
        BFloat16 rounded[8];
        int64_t i = 0;
        for (; i + 8 <= count; i += 8) {
            store8(rounded, load8(c + i));
            store8(to + i, _mm256_add_ps(load8(to + i), load8(rounded)));
        }
        if (const int64_t rest = count - i) {
            store8(rounded, load_part(c + i, rest));
            store_part(to + i, _mm256_add_ps(load_part(to + i, rest), load8(rounded)), rest);
        }
    }

    template <class Task>
    void each_token(Crew& crew, const Task& task) const {
        crew.each(divided_up(s.tokens, TOKENS_AT_ONCE), [&](int64_t i) {
            for (int64_t token = i * TOKENS_AT_ONCE; token < std::min(s.tokens, (i + 1) * TOKENS_AT_ONCE); token++)
                task(token);
        });
    }

    const Decoder& d;
    const Pool& pool_;
    const Step& s;
    const Buffers& b;
};

// Floats for the states of the parts of lone tokens, in whichever layer needs most.
int64_t states_size(const Decoder& d, const Step& s) {
    int64_t parts = 0;
    for (int64_t seq = 0; seq < s.seqs; seq++)
        if (s.starts[seq + 1] - s.starts[seq] == 1) parts += divided_up(s.contexts[seq] + 1, DECODE_PART);
    return parts * d.heads * (d.head_dim + 2);
}

}  // namespace
}  // namespace pdq

PDQ_EXPORT void pdq_decoder_step(const pdq::Decoder* decoder, const pdq::Pool* pool, const pdq::Step* step) {
    const pdq::Buffers buffers(*decoder, *step, pdq::states_size(*decoder, *step));
    const pdq::Walk walk(*decoder, *pool, *step, buffers);
    pdq::Team::of_process().run([&](pdq::Crew& crew) { walk.go(crew); });
}
