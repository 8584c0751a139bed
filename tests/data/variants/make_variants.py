#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Writes the files of variants beside it: rules of public routers in their plainest form, in Python's floats, with dense
one-hot loops and no code of the library. Needs nothing but Python. Usage: make_variants.py DIRECTORY"""
import json
import math
import random
import struct
import sys

FORMATS = {"F32": "f", "I64": "q", "U8": "B"}


def flat(value):
    return [x for part in value for x in flat(part)] if isinstance(value, list) else [value]


def shape(value):
    return [len(value)] + shape(value[0]) if isinstance(value, list) else []


def normal(*extents, scale=1.0):
    """Normal draws that float32 holds exactly."""
    if not extents:
        return struct.unpack("f", struct.pack("f", random.gauss(0, scale)))[0]
    return [normal(*extents[1:], scale=scale) for _ in range(extents[0])]


def write(path, source, variants):
    """variants: name -> (parameters, {tensor: (dtype, values)})"""
    metadata = {"case": path.split("/")[-1].split(".")[0], "source": source, "variants": ",".join(variants)}
    header, data = {"__metadata__": metadata}, b""
    for name, (parameters, tensors) in variants.items():
        metadata["variant." + name] = json.dumps(parameters)
        for tensor, (dtype, values) in tensors.items():
            numbers = flat(values)
            packed = struct.pack("<%d%s" % (len(numbers), FORMATS[dtype]), *numbers)
            header[name + "." + tensor] = {"dtype": dtype, "shape": shape(values),
                                           "data_offsets": [len(data), len(data) + len(packed)]}
            data += packed
    text = json.dumps(header).encode()
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text + data)


def softmax(z):
    weights = [math.exp(v - max(z)) for v in z]
    return [w / sum(weights) for w in weights]


def product(rows, weight):
    return [[sum(a * b for a, b in zip(row, column)) for column in zip(*weight)] for row in rows]


def best(values, k):
    """Indices of the k largest, ties to the lower one."""
    return sorted(range(len(values)), key=lambda i: (-values[i], i))[:k]


# ---- tensor2tensor's top 2 in two levels, as in lucidrains/mixture-of-experts ----

def top_2(rows, weight, policy, factor, importance=None):
    """Combine weights [row][expert][place] of one sequence, and its balance loss."""
    raw = [softmax(z) for z in product(rows, weight)]
    n, experts = len(raw), len(raw[0])
    first, second, g1, g2 = [None] * n, [None] * n, [0.0] * n, [0.0] * n
    for t in range(n):
        rest = list(raw[t])
        if importance is None or importance[t] == 1.0:
            first[t] = best(raw[t], 1)[0]
            g1[t] = raw[t][first[t]]
            rest[first[t]] = 0.0
        second[t] = best(rest, 1)[0]
        g2[t] = rest[second[t]]
        if policy == "none" or (importance is not None and importance[t] == 0):
            second[t] = None
        total = g1[t] + g2[t] + 1e-9
        g1[t], g2[t] = g1[t] / total, g2[t] / total
    ones = [t for t in range(n) if importance is None or importance[t] == 1.0]
    density = [sum(1.0 for t in ones if best(raw[t], 1)[0] == e) / n for e in range(experts)]
    proxy = [sum(raw[t][e] for t in ones) / n for e in range(experts)]
    loss = sum(d * p for d, p in zip(density, proxy)) / experts * experts ** 2
    places = max(min(n, int(n * factor / experts)), 4)
    combine = [[[0.0] * places for _ in range(experts)] for _ in range(n)]
    kept = [0] * experts
    for choice, gate in ((first, g1), (second, g2)):
        asked = list(kept)
        for t in range(n):
            e = choice[t]
            if e is None:
                continue
            if asked[e] < places:
                combine[t][e][asked[e]] += gate[t]
                kept[e] += 1
            asked[e] += 1
    return combine, loss


def mlp(rows, w1, w2):
    return product([[max(0.0, v) for v in row] for row in product(rows, w1)], w2)


def add(total, rows, combine, expert):
    """total[t] += sum over places of combine * rows[place]"""
    for t in range(len(total)):
        for c, weight in enumerate(combine[t][expert]):
            if weight > 0:
                total[t] = [a + weight * b for a, b in zip(total[t], rows[c])]


def buffer_of(rows, combine, expert):
    places = len(combine[0][expert])
    result = [[0.0] * len(rows[0]) for _ in range(places)]
    for t, row in enumerate(rows):
        for c in range(places):
            if combine[t][expert][c] > 0:
                result[c] = row
    return result


def two_levels(policy, factor, mode):
    sequences, n, dim, outer, inner, hidden = 2, 21, 8, 3, 4, 6
    tokens, w_outer = normal(sequences, n, dim), normal(dim, outer)
    w_inner = normal(outer, dim, inner)
    w1, w2 = normal(outer, inner, dim, hidden, scale=0.3), normal(outer, inner, hidden, dim, scale=0.3)
    output, loss_outer, loss_inner = [], 0.0, 0.0
    for rows in tokens:
        combine, loss = top_2(rows, w_outer, policy, factor)
        loss_outer += loss / sequences
        total = [[0.0] * dim for _ in range(n)]
        for e in range(outer):
            buffer = buffer_of(rows, combine, e)
            weight = [sum(combine[t][e][c] for t in range(n)) for c in range(len(buffer))]
            importance = [0.5 * ((w > 0.5) + (w > 0)) for w in weight]
            inside, loss = top_2(buffer, w_inner[e], policy, factor, importance)
            loss_inner += loss / sequences / outer
            result = [[0.0] * dim for _ in buffer]
            for f in range(inner):
                add(result, mlp(buffer_of(buffer, inside, f), w1[e][f], w2[e][f]), inside, f)
            add(total, result, combine, e)
        output.append(total)
    parameters = {"cls": "HeirarchicalMoE", "second_policy_" + mode: policy, "mode": mode, "act": "relu"}
    tensors = {"input": tokens, "w.gate_outer.w_gating": w_outer, "w.gate_inner.w_gating": w_inner,
               "w.experts.w1": w1, "w.experts.w2": w2, "output": output, "loss_outer": [loss_outer],
               "loss_inner": [loss_inner], "loss_scaled": [1e-2 * (loss_outer + loss_inner)]}
    return parameters, {name: ("F32", values) for name, values in tensors.items()}


# ---- T5X (flaxformer) with padding: tokens of zeros at the end of each group ----

GROUPS, LENGTH, PADDING, EXPERTS = 3, 13, 6, 5


def experts_choose(p, capacity, views):
    combine, slot, kept = views
    for e in range(EXPERTS):
        for place, t in enumerate(best([row[e] for row in p], capacity)):
            combine[t][e], slot[t][e], kept[t][e] = p[t][e], place, 1


def tokens_choose(p, choices, order, capacity, views):
    """Returns expert and place, and weight, of every choice."""
    combine, slot, kept = views
    count, k = [0] * EXPERTS, len(choices[0])
    indices, weights = [[[0, 0]] * k for _ in p], [[0.0] * k for _ in p]
    for j in range(k):
        for t in order:
            e = choices[t][j]
            if e is None:
                continue
            indices[t][j] = [e, count[e]]
            if count[e] < capacity:
                combine[t][e], slot[t][e], kept[t][e], weights[t][j] = p[t][e], count[e], 1, p[t][e]
            count[e] += 1
    return indices, weights


def t5x(router, k, capacity, by_score):
    dim = 7
    tokens, weight = normal(GROUPS, LENGTH, dim), normal(dim, EXPERTS, scale=0.5)
    for group in tokens:
        group[LENGTH - PADDING:] = [[0.0] * dim for _ in range(PADDING)]
    logits = [product(group, weight) for group in tokens]
    z = sum(math.log(sum(map(math.exp, row))) ** 2 for group in logits for row in group) / (GROUPS * LENGTH)
    all_views, all_indices, all_weights, aux = ([], [], []), [], [], 0.0
    for g in range(GROUPS):
        real = [any(row) for row in tokens[g]]
        p = [[v * r for v in softmax(row)] for row, r in zip(logits[g], real)]
        views = tuple([[empty] * EXPERTS for _ in range(LENGTH)] for empty in (0.0, -1, 0))
        if router == "ExpertsChooseMaskedRouter":
            experts_choose(p, capacity, views)
        else:
            masked = router == "TokensChooseMaskedRouter"
            choices = [best(row, k) if r or not masked else [None] * k for row, r in zip(p, real)]
            for e in range(EXPERTS):
                aux += sum(e in c for c in choices) * sum(row[e] for row in p) * EXPERTS / LENGTH ** 2 / GROUPS
            order = best([max(row) for row in p], LENGTH) if by_score else range(LENGTH)
            indices, weights = tokens_choose(p, choices, order, capacity, views)
            all_indices.append(indices)
            all_weights.append(weights)
        for view, values in zip(all_views, views):
            view.append(values)
    parameters = {"cls": router, "capacity": capacity, "groups": GROUPS, "tokens_per_group": LENGTH,
                  "n_experts": EXPERTS, "padding_tokens": PADDING}
    if k:
        parameters.update({"num_selected_experts": k, "batch_prioritized_routing": by_score})
    tensors = {"input": ("F32", tokens), "w_router": ("F32", weight), "logits": ("F32", logits),
               "router_z_loss": ("F32", [z]), "aux_loss": ("F32", [aux])}
    if router == "TokensChooseScatterRouter":
        tensors.update({"combine_weights": ("F32", all_weights), "dispatch_indices": ("I64", all_indices)})
    else:
        for name, dtype, values in zip(("combine_gte", "slot_gte", "kept_gte"), ("F32", "I64", "U8"), all_views):
            tensors[name] = (dtype, values)
    return parameters, tensors


# ---- Megatron-LM: groups, biases and all score functions ----

def megatron(function, k=4, before=False, bias=False, groups=None, scale=1.0):
    tokens, experts = 37, 12
    logits, offset = normal(tokens, experts), normal(experts, scale=0.2) if bias else [0.0] * experts
    score_of = {"softmax": lambda z: softmax(z) if before else z,
                "sigmoid": lambda z: [1 / (1 + math.exp(-v)) for v in z],
                "sqrtsoftplus": lambda z: [math.sqrt(math.log1p(math.exp(v))) for v in z]}[function]
    probs, routing_map = [], []
    for z in logits:
        score = score_of(z)
        rank = [a + b for a, b in zip(score, offset)]
        if groups:
            size, kept = experts // groups[0], groups[1]
            sums = [sum(sorted(rank[g * size:(g + 1) * size])[-(k // kept):]) for g in range(groups[0])]
            allowed = best(sums, kept)
            rank = [v if e // size in allowed else -math.inf for e, v in enumerate(rank)]
        chosen = best(rank, k)
        weights = [score[e] for e in chosen]
        if function != "softmax" and k > 1:
            weights = [w / (sum(weights) + 1e-20) for w in weights]
        elif function == "softmax" and not before:
            weights = softmax(weights)
        probs.append([scale * weights[chosen.index(e)] if e in chosen else 0.0 for e in range(experts)])
        routing_map.append([int(e in chosen) for e in range(experts)])
    parameters = {"tokens": tokens, "n_experts": experts, "top_k": k, "score_function": function,
                  "use_pre_softmax": before, "scaling_factor": scale}
    tensors = {"logits": ("F32", logits), "probs": ("F32", probs), "routing_map": ("U8", routing_map)}
    if groups:
        parameters.update({"num_groups": groups[0], "group_topk": groups[1]})
    if bias:
        tensors["expert_bias"] = ("F32", offset)
    return parameters, tensors


def main(directory):
    random.seed(7)
    levels = {"hier_all": two_levels("all", 1.25, "train"), "hier_none": two_levels("none", 2.0, "eval")}
    write(directory + "/t5x_padding.safetensors", "rules of google/flaxformer",
          {"experts_choose": t5x("ExpertsChooseMaskedRouter", 0, 9, False),
           "tokens_choose": t5x("TokensChooseMaskedRouter", 2, 4, False),
           "tokens_choose_bpr": t5x("TokensChooseMaskedRouter", 3, 5, True),
           "scatter": t5x("TokensChooseScatterRouter", 2, 6, False),
           "scatter_bpr": t5x("TokensChooseScatterRouter", 2, 6, True)})
    write(directory + "/megatron_groups.safetensors", "rules of NVIDIA/Megatron-LM",
          {"softmax_post": megatron("softmax", groups=(4, 2)),
           "softmax_pre": megatron("softmax", before=True, groups=(4, 2)),
           "sigmoid_bias": megatron("sigmoid", bias=True, groups=(4, 2), scale=1.7),
           "sigmoid_top_1": megatron("sigmoid", k=1),
           "sqrtsoftplus_bias": megatron("sqrtsoftplus", bias=True),
           "sqrtsoftplus": megatron("sqrtsoftplus", groups=(4, 2), scale=1.7)})
    levels["hier_all_eval"] = two_levels("all", 2.0, "eval")  # last, so that the draws of the others stay
    write(directory + "/two_levels.safetensors", "rules of lucidrains/mixture-of-experts", levels)


main(sys.argv[1])
