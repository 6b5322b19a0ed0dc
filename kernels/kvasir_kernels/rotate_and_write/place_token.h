// One pass over a step's projected heads: norm of queries and keys, rotation, and keys and values into their slots.

#pragma once

#include <cmath>

#include "native/sharing.h"

namespace rotation {

template <class Number>
struct Heads {
    Number* heads;         // [T, H + 2K, D]; queries are turned in place
    const Number *query_norm, *key_norm;  // [D], or null
    float eps;
    const float *cos, *sin;  // [.., D / 2], rows angle_stride apart
    int64_t angle_stride;
    const int64_t* positions;  // [T], of each token's row; null: one row for each token
    const int64_t* slots;  // [T]; -1 is padding
    Number *keys, *values;  // [N * P, K, D]
    int64_t num_tokens, num_heads, num_kv_heads, head_dim;
};

template <class Number>
void norm_head(const Number* head, const Number* weight, float eps, int64_t head_dim, Number* out) {
    Floats squares = {};
    for (int64_t i = 0; i < head_dim; i += kLanes) squares += load(head + i) * load(head + i);
    const float scale = 1.0f / std::sqrt(sum(squares) / static_cast<float>(head_dim) + eps);
    for (int64_t i = 0; i < head_dim; i += kLanes)
        store(out + i, rounded<Number>(load(head + i) * scale) * load(weight + i));
}

template <class Number>
void turn_head(const Number* head, const float* cos, const float* sin, int64_t head_dim, Number* out) {
    const int64_t half = head_dim / 2;
    const auto turn = [&](int64_t i, int64_t count) {
        const Floats first = load_part(head + i, count), second = load_part(head + half + i, count);
        const Floats c = load_part(cos + i, count), s = load_part(sin + i, count);
        store_part(out + i, first * c - second * s, count);
        store_part(out + half + i, second * c + first * s, count);
    };
    int64_t i = 0;
    for (; i + kLanes <= half; i += kLanes) turn(i, kLanes);
    if (i < half) turn(i, half - i);
}

template <class Number>
void place_token(const Heads<Number>& step, int64_t token) {
    const int64_t D = step.head_dim, H = step.num_heads, K = step.num_kv_heads, slot = step.slots[token];
    const int64_t angles = (step.positions ? step.positions[token] : token) * step.angle_stride;
    const float *cos = step.cos + angles, *sin = step.sin + angles;
    Number* heads = step.heads + token * (H + 2 * K) * D;
    for (int64_t h = 0; h < H + (slot >= 0 ? K : 0); ++h) {
        Number* head = heads + h * D;
        const Number* weight = h < H ? step.query_norm : step.key_norm;
        if (weight) norm_head(head, weight, step.eps, D, head);
        turn_head(head, cos, sin, D, h < H ? head : step.keys + (slot * K + h - H) * D);
    }
    if (slot >= 0) std::memcpy(step.values + slot * K * D, heads + (H + K) * D, K * D * sizeof(Number));
}

template <class Number, class Share>
void place_tokens(const Heads<Number>& step, Share& share) {
    const int64_t work = 4 * step.num_tokens * (step.num_heads + 2 * step.num_kv_heads) * step.head_dim;
    share(step.num_tokens, work, [&](int64_t token) { place_token(step, token); });
}

}  // namespace rotation
