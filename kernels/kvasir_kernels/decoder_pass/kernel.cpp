// A step through all layers of a plain decoder in one call, by threads that stay together from the first to the last.
//
//   ids -> embedding -> L x ( norm, qkv, heads placed, attention, output | norm, gate and up, gate, down ) -> norm
//
// Each part is the code of the operation of that name, in its order: the results are those of one call for each. Of the
// last layer all tokens' keys and values are needed, but the rest only for tokens that somebody asks for.

#include <omp.h>

#include <memory>
#include <optional>

#include "linear/product.h"
#include "native/sharing.h"
#include "paged_attention/attend.h"
#include "quantized_linear/product.h"
#include "rms_norm/norm_row.h"
#include "rotate_and_write/place_token.h"
#include "silu_mul/gate_row.h"

namespace {

// What lies between the two products of a feed-forward stays in the second cache for so many tokens.
constexpr int64_t kChunkTokens = 256;

// Beside the formats of quantized_linear.
enum Form : int64_t { kPacked = 0, kAsItLies = 1 };

// As native.py lays them out. scales, group_size: of quantized ones.
template <class Number>
struct Matrix {
    const void* weights;
    const Number* bias;
    const Bf16* scales;
    int64_t form, group_size;

    const Number* numbers() const { return static_cast<const Number*>(weights); }

    quantized::Matrix<Number> quantized() const {
        return {static_cast<const uint8_t*>(weights), scales, form, group_size};
    }
};

template <class Number>
struct Layer {
    const Number* attention_norm;
    Matrix<Number> qkv;
    const Number *query_norm, *key_norm;
    Matrix<Number> output;
    const Number* feed_forward_norm;
    Matrix<Number> gate_up, down;
    int64_t window;
};

template <class Number>
struct Cache {
    Number *keys, *values;  // [N, P, K, D]
};

struct Shape {
    int64_t num_layers, hidden_size, intermediate_size, num_heads, num_kv_heads, head_dim, page_size;
    float eps, scale;

    int64_t query_size() const { return num_heads * head_dim; }
    int64_t heads_size() const { return query_size() + 2 * num_kv_heads * head_dim; }
    int64_t num_products() const {
        return num_layers * hidden_size * (heads_size() + query_size() + 3 * intermediate_size);
    }
};

struct Tokens {
    const int64_t *ids, *positions, *slots;  // [T]
    int64_t count;
};

// The tokens whose last hidden states are asked for, in order: of each sequence some of its last, or none.
struct Wanted {
    const int64_t* rows;  // [W]
    int64_t count;

    // How many of each sequence: what attention takes for the sequences' new tokens.
    std::vector<int64_t> per_sequence(const attention::Lengths& lengths) const {
        std::vector<int64_t> counts(lengths.num_sequences, 0);
        int64_t end = 0, i = 0;
        for (int64_t sequence = 0; sequence < lengths.num_sequences; ++sequence)
            for (end += lengths.query_lens[sequence]; i < count && rows[i] < end; ++i) ++counts[sequence];
        return counts;
    }
};

// Memory of the caller's thread, kept for its next step.
template <class Number>
class Activations {
  public:
    Number *residual, *update, *normed, *heads, *attended, *gate_up, *gated;

    Activations(const Shape& shape, int64_t num_tokens) {
        const int64_t chunk = std::min(num_tokens, kChunkTokens);
        const int64_t sizes[] = {num_tokens * shape.hidden_size,        num_tokens * shape.hidden_size,
                                 num_tokens * shape.hidden_size,        num_tokens * shape.heads_size(),
                                 num_tokens * shape.query_size(),       2 * chunk * shape.intermediate_size,
                                 chunk * shape.intermediate_size};
        Number** parts[] = {&residual, &update, &normed, &heads, &attended, &gate_up, &gated};
        int64_t total = 0;
        for (int64_t size : sizes) total += whole_lines(size);
        Number* next = reserve(total + whole_lines(1));
        next += (64 - reinterpret_cast<uintptr_t>(next) % 64) / sizeof(Number);
        for (int i = 0; i < 7; ++i) {
            *parts[i] = next;
            next += whole_lines(sizes[i]);
        }
    }

  private:
    static int64_t whole_lines(int64_t size) { return (size + 63) / 64 * 64; }

    static Number* reserve(int64_t size) {
        static thread_local std::unique_ptr<Number[]> memory;
        static thread_local int64_t capacity = 0;
        if (capacity < size) {
            memory.reset();
            memory.reset(new Number[size]);
            capacity = size;
        }
        return memory.get();
    }
};

// One division of the step for each reach that its layers have.
class Divisions {
  public:
    Divisions(const Shape& shape, const attention::Lengths& lengths, int64_t num_threads)
        : shape_(shape), lengths_(lengths), num_threads_(num_threads) {}

    void add(int64_t window) {
        for (int64_t known : windows_)
            if (known == window) return;
        windows_.push_back(window);
        divisions_.emplace_back(attention::Layout{shape_.num_heads, shape_.num_kv_heads, shape_.head_dim, window},
                                lengths_, num_threads_);
    }

    attention::Division& of(int64_t window) {
        size_t i = 0;
        while (windows_[i] != window) ++i;
        return divisions_[i];
    }

  private:
    const Shape& shape_;
    const attention::Lengths lengths_;
    const int64_t num_threads_;
    std::vector<int64_t> windows_;
    std::vector<attention::Division> divisions_;
};

template <class Number>
struct Pass {
    const Shape& shape;
    const Layer<Number>* layers;
    const Cache<Number>* caches;
    const Tokens tokens;
    const Matrix<Number>& embedding;  // [V, E]
    const float* angles;  // [max_positions, D]: cosines, then sines
    const int64_t* page_tables;
    int64_t num_table_pages;
    const Number* final_norm;
    const Wanted wanted;
    Number* out;  // [W, E]
    Activations<Number> memory;
    Divisions divisions, wanted_divisions;

    void run(Team& team) {
        embed(team);
        int64_t num_rows = tokens.count;
        for (int64_t i = 0; i < shape.num_layers; ++i) {
            norm(layers[i].attention_norm, i > 0, num_rows, memory.normed, team);
            place(layers[i], caches[i], team);
            const bool is_last = i + 1 == shape.num_layers;
            if (is_last && wanted.count < num_rows) {
                keep_wanted(team);
                num_rows = wanted.count;
                if (num_rows == 0) return;
            }
            attend(layers[i], caches[i], is_last ? wanted_divisions : divisions, num_rows, team);
            norm(layers[i].feed_forward_norm, true, num_rows, memory.normed, team);
            feed_forward(layers[i], num_rows, team);
        }
        norm(final_norm, true, num_rows, out, team);
    }

    void embed(Team& team) {
        const int64_t size = shape.hidden_size;
        team(tokens.count, 0, [&](int64_t t) {
            Number* to = memory.residual + t * size;
            if (embedding.form == kAsItLies)
                std::memcpy(to, embedding.numbers() + tokens.ids[t] * size, size * sizeof(Number));
            else if (embedding.form == kPacked)
                linear::unpack_row(embedding.numbers(), size, tokens.ids[t], to);
            else
                quantized::unpack_row(embedding.quantized(), size, tokens.ids[t], to);
        });
    }

    // Rows of the residual and of queries move up to where the wanted ones lie one after the other.
    void keep_wanted(Team& team) {
        team(1, 0, [&](int64_t) {
            for (int64_t i = 0; i < wanted.count; ++i) {
                const int64_t E = shape.hidden_size, from = wanted.rows[i];
                if (from == i) continue;
                std::memcpy(memory.residual + i * E, memory.residual + from * E, E * sizeof(Number));
                std::memcpy(memory.heads + i * shape.heads_size(), memory.heads + from * shape.heads_size(),
                            shape.query_size() * sizeof(Number));
            }
        });
    }

    void norm(const Number* weight, bool has_update, int64_t num_rows, Number* normed, Team& team) {
        const Number* x = has_update ? memory.update : memory.residual;
        const Number* residual = has_update ? memory.residual : nullptr;
        norm::norm_rows(x, residual, weight, shape.eps, num_rows, shape.hidden_size, memory.residual, normed, team);
    }

    void multiply(const Number* x, const Matrix<Number>& matrix, int64_t num_rows, int64_t num_inputs,
                  int64_t num_outputs, Number* to, Team& team) {
        const linear::Product<Number> product{x,        num_inputs, matrix.numbers(), matrix.bias,
                                              num_rows, num_inputs, num_outputs};
        if (matrix.form == kPacked)
            linear::multiply(product, to, team);
        else
            quantized::multiply(product, matrix.quantized(), to, team);
    }

    // Keys and values to their slots, and queries turned.
    void place(const Layer<Number>& layer, const Cache<Number>& cache, Team& team) {
        const int64_t D = shape.head_dim, H = shape.num_heads, K = shape.num_kv_heads;
        multiply(memory.normed, layer.qkv, tokens.count, shape.hidden_size, shape.heads_size(), memory.heads, team);
        const rotation::Heads<Number> heads{memory.heads,     layer.query_norm, layer.key_norm, shape.eps,    angles,
                                            angles + D / 2,   D,                tokens.positions, tokens.slots,
                                            cache.keys,       cache.values,     tokens.count,   H,            K, D};
        rotation::place_tokens(heads, team);
    }

    void attend(const Layer<Number>& layer, const Cache<Number>& cache, Divisions& divided, int64_t num_rows,
                Team& team) {
        const int64_t D = shape.head_dim, H = shape.num_heads, K = shape.num_kv_heads;
        const attention::Step<Number> step{memory.heads, shape.heads_size(), cache.keys, cache.values, page_tables,
                                           num_table_pages, shape.page_size, H, K, D, shape.scale, layer.window,
                                           memory.attended};
        attention::attend(step, divided.of(layer.window), team);
        multiply(memory.attended, layer.output, num_rows, H * D, shape.hidden_size, memory.update, team);
    }

    void feed_forward(const Layer<Number>& layer, int64_t num_rows, Team& team) {
        const int64_t E = shape.hidden_size, I = shape.intermediate_size;
        for (int64_t first = 0; first < num_rows; first += kChunkTokens) {
            const int64_t count = std::min(kChunkTokens, num_rows - first);
            multiply(memory.normed + first * E, layer.gate_up, count, E, 2 * I, memory.gate_up, team);
            gate::gate_rows(memory.gate_up, count, I, memory.gated, team);
            multiply(memory.gated, layer.down, count, I, E, memory.update + first * E, team);
        }
    }
};

template <class Number>
void run_together(Pass<Number>& pass, int num_threads) {
    if (num_threads == 1) {
        Team alone(1);
        pass.run(alone);
        return;
    }
    std::optional<Team> team;
#pragma omp parallel num_threads(num_threads)
    {
        // OpenMP may give fewer than were asked for.
#pragma omp single
        team.emplace(omp_get_num_threads());
        pass.run(*team);
    }
}

}  // namespace

#define KVASIR_DECODER_PASS(suffix, Number)                                                                           \
    extern "C" void kvasir_decoder_pass_##suffix(                                                                     \
        const Shape* shape, const Layer<Number>* layers, const Cache<Number>* caches, const int64_t* token_ids,       \
        const int64_t* positions, const int64_t* slots, int64_t num_tokens, const Matrix<Number>* embedding,          \
        const float* angles, const int64_t* page_tables, int64_t num_table_pages,                                     \
        const int64_t* query_lens, const int64_t* context_lens, int64_t num_sequences, const Number* final_norm,      \
        const int64_t* wanted_rows, int64_t num_wanted, Number* out, int64_t thread_limit) {                          \
        const int64_t work = shape->num_products() * std::max<int64_t>(num_tokens / 4, 1);                            \
        const int num_threads = threads_for(work, thread_limit);                                                      \
        const attention::Lengths lengths{query_lens, context_lens, num_sequences};                                    \
        const Wanted wanted{wanted_rows, num_wanted};                                                                 \
        const std::vector<int64_t> wanted_lens = wanted.per_sequence(lengths);                                        \
        Pass<Number> pass{*shape,                                                                                     \
                          layers,                                                                                     \
                          caches,                                                                                     \
                          {token_ids, positions, slots, num_tokens},                                                  \
                          *embedding,                                                                                 \
                          angles,                                                                                     \
                          page_tables,                                                                                \
                          num_table_pages,                                                                            \
                          final_norm,                                                                                 \
                          wanted,                                                                                     \
                          out,                                                                                        \
                          Activations<Number>(*shape, num_tokens),                                                    \
                          Divisions(*shape, lengths, num_threads),                                                    \
                          Divisions(*shape, {wanted_lens.data(), context_lens, num_sequences}, num_threads)};         \
        const int64_t num_others = shape->num_layers - 1;                                                             \
        for (int64_t i = 0; i < num_others; ++i) pass.divisions.add(layers[i].window);                                \
        pass.wanted_divisions.add(layers[num_others].window);                                                         \
        run_together(pass, num_threads);                                                                              \
    }

KVASIR_DECODER_PASS(float32, float)
KVASIR_DECODER_PASS(bfloat16, Bf16)
