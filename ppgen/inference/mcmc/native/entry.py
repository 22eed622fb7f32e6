"""The entry points of a generated program; see :mod:`ppgen.inference.mcmc.native.layout`.

Chains of a group may need different numbers of steps in a transition. Where all transitions of a call are
alike, a lane that has ended one begins its next without waiting for the others, and each of its states is
recorded in the place of its transition. As the random stream of a lane moves on for that lane only, draws
do not depend on when it was served.
"""

from __future__ import annotations

import torch

from ppgen.inference.mcmc.native.layout import Entry
from ppgen.inference.mcmc.native.trace import KernelGraphs

# A density is cheap where it computes no more numbers than these times the state has.
_CHEAP = 4

_ENTRY_POINTS = """
static Frame *new_frame(const void *const *uniform) {
    void *memory = nullptr;
    if (posix_memalign(&memory, 64, sizeof(Frame))) return nullptr;
    Frame &f = *(Frame *)memory;
    @bind@
    return &f;
}

// The entries of the state in the frame: vectors of numbers of one size, whatever their kind.
struct Member {
    long offset, numel;
    char *in(Frame &f) const { return (char *)&f + offset; }
    long size() const { return numel * sizeof(V); }
};
static const Member STATE[] = {@state@};
// Which of them these functions change.
static const int BEGIN_CHANGES[] = {@begin_changes@}, END_CHANGES[] = {@end_changes@};

template <int N, class F>
PPGEN_INLINE void in_lanes(Frame &f, I lanes, const int (&changes)[N], F function) {
    char *saved = (char *)f.saved;
    for (int k : changes) {
        __builtin_memcpy(saved, STATE[k].in(f), STATE[k].size());
        saved += STATE[k].size();
    }
    function(f);
    saved = (char *)f.saved;
    for (int k : changes)
        for (long i = 0; i < STATE[k].size(); i += sizeof(V), saved += sizeof(V)) {
            V now, before;
            __builtin_memcpy(&now, STATE[k].in(f) + i, sizeof(V));
            __builtin_memcpy(&before, saved, sizeof(V));
            now = select(lanes, now, before);
            __builtin_memcpy(STATE[k].in(f) + i, &now, sizeof(V));
        }
}

// Begins and ends transitions in these lanes and leaves the others as they are.
static void begin_in(Frame &f, Rng &random, I lanes) {
    random.only(lanes);
    @begin_noise@
    if (all(lanes)) return begin(f);
    in_lanes(f, lanes, BEGIN_CHANGES, begin);
}
static void end_in(Frame &f, Rng &random, I lanes) {
    random.only(lanes);
    @end_noise@
    if (all(lanes)) return end(f);
    in_lanes(f, lanes, END_CHANGES, end);
}
PPGEN_INLINE void advance_active(Frame &f, Rng &random) {
    @advance_noise@
    advance(f);
}

struct Call {
    const void *const *params, *const *schedule;
    void **record;
    int64_t group, num_groups, num_transitions;
};

static char *record_place(const Call &call, int k, int64_t t) {
    return (char *)call.record[k] + (t * call.num_groups + call.group) * STATE[k].size();
}
static void record_all(Frame &f, const Call &call, int64_t t) {
    for (int k = 0; k < @num_state@; k++)
        if (call.record[k]) __builtin_memcpy(record_place(call, k, t), STATE[k].in(f), STATE[k].size());
}
static void record_lane(Frame &f, const Call &call, int64_t t, int lane) {
    for (int k = 0; k < @num_state@; k++) {
        if (!call.record[k]) continue;
        char *to = record_place(call, k, t), *from = STATE[k].in(f);
        for (long i = lane * sizeof(T); i < STATE[k].size(); i += sizeof(V))
            __builtin_memcpy(to + i, from + i, sizeof(T));
    }
}

// One transition of all lanes; whether some of them had to wait for others.
static bool together(Frame &f, Rng &random, const Call &call, int64_t t) {
    @params@
    begin_in(f, random, splat_int(-1));
    bool waited = false;
    while (any(f.s_active[0])) {
        random.only(f.s_active[0]);
        waited = waited | !all(f.s_active[0]);
        advance_active(f, random);
    }
    end_in(f, random, splat_int(-1));
    record_all(f, call, t);
    return waited;
}

// Transitions from `first` on, each lane at its own pace.
static void apart(Frame &f, Rng &random, const Call &call, int64_t first) {
    const int patience = @patience@;
    int64_t next[W];
    I ready = splat_int(-1), open = ready;
    for (int lane = 0; lane < W; lane++) next[lane] = first;
    while (any(open)) {
        if (any(ready)) begin_in(f, random, ready);
        int waiting = 0;
        I active = f.s_active[0] & open;
        while (any(active) && waiting < patience) {
            random.only(active);
            advance_active(f, random);
            active = f.s_active[0] & open;
            waiting = count(open & ~active);
        }
        I ended = open & ~active;
        end_in(f, random, ended);
        ready = ended;
        for (int lane = 0; lane < W; lane++) {
            if (!ended[lane]) continue;
            record_lane(f, call, next[lane]++, lane);
            if (next[lane] == call.num_transitions) open[lane] = ready[lane] = 0;
        }
    }
}

extern "C" int ppgen_run(void **state, const void *const *uniform, const void *const *params,
                         const void *const *schedule, void **record, uint32_t *rng, int64_t first_group,
                         int64_t last_group, int64_t num_groups, int64_t num_transitions) {
    Frame *frame = new_frame(uniform);
    if (!frame) return 1;
    Frame &f = *frame;
    bool alike = true;
    for (int i = 0; i < @num_params@; i++) alike = alike && !schedule[i];
    for (int64_t group = first_group; group < last_group; group++) {
        for (int k = 0; k < @num_state@; k++)
            __builtin_memcpy(STATE[k].in(f), (char *)state[k] + group * STATE[k].size(), STATE[k].size());
        Rng random(rng + group * 4 * W);
        Call call = {params, schedule, record, group, num_groups, num_transitions};
        for (int64_t t = 0; t < num_transitions; t++)
            if (together(f, random, call, t) && alike && t + 1 < num_transitions) {
                apart(f, random, call, t + 1);
                break;
            }
        random.store();
        for (int k = 0; k < @num_state@; k++)
            __builtin_memcpy((char *)state[k] + group * STATE[k].size(), STATE[k].in(f), STATE[k].size());
    }
    free(frame);
    return 0;
}
extern "C" int ppgen_energy(const void *const *uniform, const void *z, void *u, void *g, int64_t first_group,
                            int64_t last_group) {
    Frame *frame = new_frame(uniform);
    if (!frame) return 1;
    Frame &f = *frame;
    for (int64_t group = first_group; group < last_group; group++) {
        __builtin_memcpy(f.s_z, (char *)z + group * sizeof(f.s_z), sizeof(f.s_z));
        energy(f, f.s_z, f.s_u, f.s_g);
        __builtin_memcpy((char *)u + group * sizeof(f.s_u), f.s_u, sizeof(f.s_u));
        __builtin_memcpy((char *)g + group * sizeof(f.s_g), f.s_g, sizeof(f.s_g));
    }
    free(frame);
    return 0;
}
"""


def entry_points(graphs: KernelGraphs, num_uniforms: int, *, work: int) -> str:
    """C++ of ``ppgen_run`` and ``ppgen_energy``, for a ``Frame`` and functions that stand before it.

    ``work`` is how many numbers the density computes: where it is cheap, some lanes wait for each other
    before they are served, for that costs about as much as a step.
    """
    cheap = work < _CHEAP * sum(e.numel for e in graphs.state)
    numbers = {e.name: str(i) for i, e in enumerate(graphs.state)}
    parts: dict[str, list[str]] = {
        "bind": [f"f.u{i} = (decltype(f.u{i}))uniform[{i}];" for i in range(num_uniforms)],
        "params": [
            line
            for i, e in enumerate(graphs.params)
            for line in (
                f"f.p{i} = (decltype(f.p{i}))(call.schedule[{i}] ? call.schedule[{i}] : call.params[{i}]);",
                f"if (call.schedule[{i}]) f.p{i} += t * {e.numel};",
            )
        ],
        "num_params": [str(len(graphs.params))],
        "patience": ["W / 4 > 1 ? W / 4 : 1" if cheap else "1"],
        "num_state": [str(len(graphs.state))],
        "state": [f"{{__builtin_offsetof(Frame, s_{e.name}), {e.numel}}}," for e in graphs.state],
    }
    for function in ("begin", "advance", "end"):
        parts[f"{function}_noise"] = _draw(graphs, function)
        parts[f"{function}_changes"] = [", ".join(numbers[e.name] for e in _changed(graphs, function))]
    source = _ENTRY_POINTS
    for name, lines in parts.items():
        source = source.replace(f"@{name}@", "\n    ".join(lines))
    return source


def saved_size(graphs: KernelGraphs) -> int:
    """How many vectors must be kept to begin or end a transition in some lanes only."""
    sizes = (sum(e.numel for e in _changed(graphs, function)) for function in ("begin", "end"))
    return max(1, *sizes)


def _changed(graphs: KernelGraphs, function: str) -> list[Entry]:
    names = {key for role, key in graphs.functions[function].outputs if role == "state"}
    return [e for e in graphs.state if e.name in names]


def _draw(graphs: KernelGraphs, function: str) -> list[str]:
    return [
        f"for (long i = 0; i < {torch.Size(spec.shape).numel()}; i++) "
        f"f.n_{function}_{key}[i] = random.{spec.kind}();"
        for key, spec in graphs.noise[function].items()
    ]
