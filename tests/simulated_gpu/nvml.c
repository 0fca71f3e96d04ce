/* Stands in for libnvidia-ml.so.1: GPUs whose power trace is known exactly, for unmodified pynvml and Zeus.
 *
 * The file named by JOULEBOARD_SIMULATED_GPU says what the GPUs do. It is read again whenever it was replaced (replace
 * it by a rename, so that half a file is never read). Times are nanoseconds since device time 0, powers are milliwatts:
 *
 *     clock_ns 0                 where device time 0 lies on the clock; `clock monotonic|realtime|manual`, `scale N`
 *     text name SIMULATED 1.0    before the first `gpu`: the driver version
 *     gpu
 *     text name SIMULATED GPU
 *     repeat 1
 *     segment 500000000 100000 100000     half a second of 100 W
 *     segment 500000000 700000 100000     half a second falling from 700 W to 100 W
 *     span reset 60000000000 -1 0 0 -     KIND FROM TO A B NAME, TO -1: for ever
 *     idle_mw 70000              the trace's power holds only while the machine is loaded, else this one
 *     sample_period_ns 100000000, sample_on_ns 25000000   power is looked at only over the first part of each period
 *
 * When the machine is loaded stands in the file of the same name with `.load` behind it, which only grows: lines
 * `on NS` and `off NS`, each appended by a single write, where NS is a reading of the control file's clock (of a manual
 * clock: device time). A line that arrives late must not make the counter step back, so the rule is: an event counts
 * from its own time, but not before the one in the line above, and not before the latest call that this process has
 * answered. Before the first event the machine is not loaded.
 *
 * With sparse sampling, counter and power see the mean power of each period's sampled part, from the end of that part
 * until the end of the next one; until the first such end they see all.
 *
 * Energies are integers throughout (__int128), so the counter is the exact integral, rounded down to a millijoule; a
 * ramp's end, an event and a sampled part may each lose less than a picojoule.
 * Layouts and error codes: nvml.h of the CUDA toolkit 13, and pynvml.py of nvidia-ml-py 13.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>

enum { SUCCESS = 0, UNINITIALIZED = 1, INVALID_ARGUMENT = 2, NOT_SUPPORTED = 3, NO_PERMISSION = 4, NOT_FOUND = 6,
       INSUFFICIENT_SIZE = 7, VERSION_MISMATCH = 25, UNKNOWN = 999 };
enum { MAX_GPUS = 16, AMPERE = 7, SECOND_NS = 1000000000 };
enum { FIELD_ENERGY = 83, FIELD_POWER_AVERAGE = 185, FIELD_POWER_INSTANT = 186, SCOPE_MEMORY = 2 };
enum { VALUE_UNSIGNED = 1, VALUE_UNSIGNED_LONG_LONG = 3, TEMPERATURE_V1 = 0x100000C };

__extension__ typedef __int128 wide_t;

/* Whole numbers of the control file; -1 stands for "not supported" where that is possible. */
#define NUMBERS(X) \
    X(clock_ns, 0) X(scale, 1) X(now_ns, 0) \
    X(repeat, 1) X(tick_ns, 100000000) X(tick_phase_ns, 0) X(base_mj, 1000000000) X(freeze_ns, -1) \
    X(idle_mw, -1) X(sample_period_ns, 0) X(sample_on_ns, 0) \
    X(architecture, 9) X(c2c, -1) X(mig, 0) X(persistence, 1) X(ecc, 1) X(ecc_corrected, 0) X(ecc_uncorrected, 0) \
    X(limit_mw, 700000) X(default_limit_mw, 700000) X(min_limit_mw, 100000) X(max_limit_mw, 700000) \
    X(sm_mhz, 1980) X(memory_mhz, 2619) X(max_sm_mhz, 1980) X(max_memory_mhz, 2619) \
    X(temperature_mc, 40000) X(slowdown_mc, 90000) X(memory_bytes, 80000000000) X(used_bytes, 0) X(busy_percent, 100)
#define FIELD(name, value) int64_t name;
#define ASSIGN(name, value) thing->name = value;
#define PARSE(name, value) if (strcmp(key, #name) == 0) return &thing->name;

struct segment { int64_t start_ns, duration_ns, from_mw, to_mw; wide_t before; };
struct span { char kind[24], name[80]; int64_t from_ns, to_ns, a, b; };
/* The whole system (things[0]) or one GPU. */
struct thing {
    char name[96], uuid[96];
    NUMBERS(FIELD)
    struct segment *segments;
    struct span *spans;
    size_t segment_count, span_count;
    /* Grown as they are needed: energy before each event of the load, and energy of all sampled parts before each one. */
    wide_t *before_event, *before_sample;
    size_t event_count, sample_count;
};
struct event { int64_t clock_ns; int on; };
static struct {
    struct thing things[MAX_GPUS + 1];
    int gpu_count;
    clockid_t clock;
    int manual;
    struct stat seen;
} state;
/* The events of the `.load` file, at the times from which they count. */
static struct {
    char path[4096];
    dev_t device;
    ino_t inode;
    off_t read;
    struct event *events;
    size_t count;
    int64_t answered_ns;
    /* The clock that the times are readings of; with another one all starts again. */
    int64_t clock_ns;
    clockid_t clock;
    int manual;
} load = {.answered_ns = INT64_MIN};
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static int users;

/* --- energy -------------------------------------------------------------------------------------------------- */

/* Twice the energy of the first x_ns of a segment, in picojoules (mW x ns), rounded down. */
static wide_t twice_pj(const struct segment *s, int64_t x_ns) {
    wide_t slope = (wide_t)(s->to_mw - s->from_mw) * x_ns;
    return (2 * (wide_t)s->duration_ns * s->from_mw + slope) * x_ns / s->duration_ns;
}

/* The segment at a device time, and how far into it; whole cycles before it go to `cycles`. */
static const struct segment *at(const struct thing *gpu, int64_t t_ns, int64_t *into_ns, int64_t *cycles) {
    const struct segment *last = &gpu->segments[gpu->segment_count - 1];
    int64_t cycle_ns = last->start_ns + last->duration_ns;
    *cycles = gpu->repeat ? t_ns / cycle_ns : 0;
    t_ns -= *cycles * cycle_ns;
    size_t low = 0, high = gpu->segment_count - 1;
    while (low < high) {
        size_t middle = (low + high + 1) / 2;
        if (gpu->segments[middle].start_ns <= t_ns) low = middle;
        else high = middle - 1;
    }
    *into_ns = t_ns - gpu->segments[low].start_ns;
    return &gpu->segments[low];
}

/* Twice the picojoules since device time 0. A trace that does not repeat goes on at its last power. */
static wide_t integral(const struct thing *gpu, int64_t t_ns) {
    if (t_ns <= 0 || gpu->segment_count == 0) return 0;
    const struct segment *last = &gpu->segments[gpu->segment_count - 1];
    int64_t into_ns, cycles;
    const struct segment *here = at(gpu, t_ns, &into_ns, &cycles);
    wide_t sum = (last->before + twice_pj(last, last->duration_ns)) * cycles + here->before;
    if (into_ns <= here->duration_ns) return sum + twice_pj(here, into_ns);
    return sum + twice_pj(here, here->duration_ns) + 2 * (wide_t)here->to_mw * (into_ns - here->duration_ns);
}

static int64_t instant_mw(const struct thing *gpu, int64_t t_ns) {
    if (gpu->segment_count == 0) return 0;
    int64_t into_ns, cycles;
    const struct segment *here = at(gpu, t_ns < 0 ? 0 : t_ns, &into_ns, &cycles);
    if (into_ns >= here->duration_ns) return here->to_mw;
    return here->from_mw + (int64_t)((wide_t)(here->to_mw - here->from_mw) * into_ns / here->duration_ns);
}

static void *grown(void *old, size_t bytes) {
    void *new = realloc(old, bytes);
    if (new == NULL) abort();
    return new;
}

/* Device time of a reading of the clock, not before 0. */
static int64_t device_ns(int64_t clock_ns) {
    const struct thing *machine = &state.things[0];
    int64_t t_ns = state.manual ? clock_ns : (clock_ns - machine->clock_ns) * machine->scale;
    return t_ns < 0 ? 0 : t_ns;
}

/* Events that count at a device time. */
static size_t events_until(int64_t t_ns) {
    size_t low = 0, high = load.count;
    while (low < high) {
        size_t middle = (low + high) / 2;
        if (device_ns(load.events[middle].clock_ns) <= t_ns) low = middle + 1;
        else high = middle;
    }
    return low;
}

/* Twice the picojoules between two device times with no event between them; `events` lie before. */
static wide_t between(const struct thing *gpu, size_t events, int64_t from_ns, int64_t to_ns) {
    if (events && load.events[events - 1].on) return integral(gpu, to_ns) - integral(gpu, from_ns);
    return 2 * (wide_t)gpu->idle_mw * (to_ns - from_ns);
}

/* Twice the picojoules that the GPU has truly used since device time 0. */
static wide_t used(struct thing *gpu, int64_t t_ns) {
    if (gpu->idle_mw < 0) return integral(gpu, t_ns);
    if (t_ns <= 0) return 0;
    if (gpu->event_count < load.count) gpu->before_event = grown(gpu->before_event, load.count * sizeof(wide_t));
    for (size_t i = gpu->event_count; i < load.count; i++) {
        int64_t from_ns = i ? device_ns(load.events[i - 1].clock_ns) : 0;
        gpu->before_event[i] = (i ? gpu->before_event[i - 1] : 0) +
                               between(gpu, i, from_ns, device_ns(load.events[i].clock_ns));
    }
    gpu->event_count = load.count;
    size_t events = events_until(t_ns);
    if (events == 0) return between(gpu, 0, 0, t_ns);
    return gpu->before_event[events - 1] + between(gpu, events, device_ns(load.events[events - 1].clock_ns), t_ns);
}

static int sparse(const struct thing *gpu, int64_t t_ns) {
    return gpu->sample_period_ns > 0 && t_ns >= gpu->sample_on_ns;
}

/* The last sampled part that has ended; `before_sample` then holds that one's energy and those before it. */
static size_t last_sample(struct thing *gpu, int64_t t_ns) {
    size_t last = (size_t)((t_ns - gpu->sample_on_ns) / gpu->sample_period_ns);
    if (gpu->sample_count >= last + 2) return last;
    gpu->before_sample = grown(gpu->before_sample, (last + 2) * sizeof(wide_t));
    gpu->before_sample[0] = 0;
    for (size_t i = gpu->sample_count ? gpu->sample_count - 1 : 0; i <= last; i++) {
        int64_t from_ns = (int64_t)i * gpu->sample_period_ns;
        gpu->before_sample[i + 1] =
            gpu->before_sample[i] + used(gpu, from_ns + gpu->sample_on_ns) - used(gpu, from_ns);
    }
    gpu->sample_count = last + 2;
    return last;
}

/* Twice the picojoules since device time 0 as the board's own sensor sees them. */
static wide_t seen(struct thing *gpu, int64_t t_ns) {
    if (!sparse(gpu, t_ns)) return used(gpu, t_ns);
    size_t last = last_sample(gpu, t_ns);
    int64_t since_ns = t_ns - gpu->sample_on_ns - (int64_t)last * gpu->sample_period_ns;
    const wide_t *sum = gpu->before_sample;
    wide_t extended = sum[last] * gpu->sample_period_ns + (sum[last + 1] - sum[last]) * since_ns;
    return used(gpu, gpu->sample_on_ns) + extended / gpu->sample_on_ns;
}

static int64_t power_mw(struct thing *gpu, int64_t t_ns) {
    if (sparse(gpu, t_ns)) {
        size_t last = last_sample(gpu, t_ns);
        return (int64_t)((gpu->before_sample[last + 1] - gpu->before_sample[last]) / (2 * (wide_t)gpu->sample_on_ns));
    }
    if (gpu->idle_mw < 0) return instant_mw(gpu, t_ns);
    size_t events = events_until(t_ns < 0 ? 0 : t_ns);
    return events && load.events[events - 1].on ? instant_mw(gpu, t_ns) : gpu->idle_mw;
}

/* NVML: PowerUsage is the mean of the last second on Ampere and newer, field 185 always. */
static int64_t average_mw(struct thing *gpu, int64_t t_ns) {
    int64_t width_ns = t_ns < SECOND_NS ? t_ns : SECOND_NS;
    if (width_ns <= 0) return power_mw(gpu, t_ns);
    return (int64_t)((seen(gpu, t_ns) - seen(gpu, t_ns - width_ns)) / (2 * (wide_t)width_ns));
}

static int64_t counter_mj(struct thing *gpu, int64_t t_ns) {
    if (gpu->freeze_ns >= 0 && t_ns > gpu->freeze_ns) t_ns = gpu->freeze_ns;
    if (t_ns < 0) t_ns = 0;
    int64_t reset_ns = -1;
    for (size_t i = 0; i < gpu->span_count; i++) {
        const struct span *s = &gpu->spans[i];
        if (strcmp(s->kind, "reset") == 0 && s->from_ns <= t_ns && s->from_ns > reset_ns) reset_ns = s->from_ns;
    }
    /* The counter shows what it held at its last tick; ticks lie at tick_phase_ns + n x tick_ns. */
    int64_t since_ns = t_ns - gpu->tick_phase_ns, late_ns = gpu->tick_ns > 0 ? since_ns % gpu->tick_ns : 0;
    t_ns -= late_ns < 0 ? late_ns + gpu->tick_ns : late_ns;
    wide_t twice = seen(gpu, t_ns > reset_ns ? t_ns : reset_ns) - seen(gpu, reset_ns);
    return (reset_ns < 0 ? gpu->base_mj : 0) + (int64_t)(twice / (2 * (wide_t)SECOND_NS));
}

/* --- the control file ---------------------------------------------------------------------------------------- */

static void clear(struct thing *thing, const char *name) {
    free(thing->segments);
    free(thing->spans);
    free(thing->before_event);
    free(thing->before_sample);
    memset(thing, 0, sizeof *thing);
    NUMBERS(ASSIGN)
    snprintf(thing->name, sizeof thing->name, "%s", name);
}

static int64_t *number(struct thing *thing, const char *key) {
    NUMBERS(PARSE)
    return NULL;
}

static int add_segment(struct thing *thing, struct segment new) {
    if (new.duration_ns <= 0) return 0;
    if (thing->segment_count) {
        struct segment *last = &thing->segments[thing->segment_count - 1];
        new.start_ns = last->start_ns + last->duration_ns;
        new.before = last->before + twice_pj(last, last->duration_ns);
    }
    thing->segments = grown(thing->segments, (thing->segment_count + 1) * sizeof new);
    thing->segments[thing->segment_count++] = new;
    return 1;
}

static int add_span(struct thing *thing, struct span new) {
    thing->spans = grown(thing->spans, (thing->span_count + 1) * sizeof new);
    thing->spans[thing->span_count++] = new;
    return 1;
}

/* Whatever the file says, nothing that comes from here can be taken for a real device. */
static void set_text(char *out, size_t size, const char *text) {
    snprintf(out, size, "%s%s", strstr(text, "SIMULATED") ? "" : "SIMULATED ", text);
}

static int parse_line(const char *line) {
    struct thing *thing = &state.things[state.gpu_count];
    struct segment segment = {0};
    struct span span = {0};
    char key[32] = "", text[96] = "";
    long long from, to, a, b;
    if (sscanf(line, "%31s", key) < 1 || key[0] == '#') return 1;
    if (strcmp(key, "gpu") == 0) {
        if (state.gpu_count == MAX_GPUS) return 0;
        clear(&state.things[++state.gpu_count], "SIMULATED GPU");
        return 1;
    }
    if (strcmp(key, "clock") == 0 && sscanf(line, "%*s %31s", text) == 1) {
        state.manual = strcmp(text, "manual") == 0;
        state.clock = strcmp(text, "realtime") == 0 ? CLOCK_REALTIME : CLOCK_MONOTONIC;
        return 1;
    }
    if (sscanf(line, "text name %95[^\n]", text) == 1) return set_text(thing->name, sizeof thing->name, text), 1;
    if (sscanf(line, "text uuid %95[^\n]", text) == 1) return set_text(thing->uuid, sizeof thing->uuid, text), 1;
    if (sscanf(line, "segment %lld %lld %lld", &from, &a, &b) == 3) {
        segment.duration_ns = from, segment.from_mw = a, segment.to_mw = b;
        return add_segment(thing, segment);
    }
    if (sscanf(line, "span %23s %lld %lld %lld %lld %79s", span.kind, &from, &to, &a, &b, span.name) == 6) {
        span.from_ns = from, span.to_ns = to < 0 ? INT64_MAX : to, span.a = a, span.b = b;
        return add_span(thing, span);
    }
    int64_t *value = number(thing, key);
    if (value == NULL || sscanf(line, "%*s %lld", &a) != 1) return 0;
    *value = a;
    return 1;
}

static int changed(const struct stat *now) {
    const struct stat *old = &state.seen;
    return now->st_ino != old->st_ino || now->st_dev != old->st_dev || now->st_size != old->st_size ||
           now->st_mtim.tv_sec != old->st_mtim.tv_sec || now->st_mtim.tv_nsec != old->st_mtim.tv_nsec;
}

static int complain(const char *what, const char *path) {
    fprintf(stderr, "simulated GPU: %s: %s\n", path, what);
    memset(&state.seen, 0, sizeof state.seen);
    return UNKNOWN;
}

static int reread(void) {
    const char *path = getenv("JOULEBOARD_SIMULATED_GPU");
    struct stat now;
    char line[256];
    if (path == NULL) return complain("JOULEBOARD_SIMULATED_GPU is not set", "environment");
    if (stat(path, &now) == 0 && !changed(&now)) return SUCCESS;
    FILE *file = fopen(path, "re");
    if (file == NULL) return complain("cannot be read", path);
    /* The file may have been replaced since `stat`. */
    fstat(fileno(file), &state.seen);
    state.gpu_count = 0, state.clock = CLOCK_MONOTONIC, state.manual = 0;
    clear(&state.things[0], "SIMULATED 1.0");
    int good = 1;
    while (good && fgets(line, sizeof line, file)) good = parse_line(line);
    fclose(file);
    for (int i = 1; good && i <= state.gpu_count; i++)
        if (state.things[i].sample_period_ns > 0) {
            good = 0 < state.things[i].sample_on_ns && state.things[i].sample_on_ns <= state.things[i].sample_period_ns;
            if (!good) snprintf(line, sizeof line, "sample_on_ns is not above 0 and up to sample_period_ns");
        }
    return good ? SUCCESS : complain(line, path);
}

/* --- the load file ------------------------------------------------------------------------------------------- */

static void forget_load(void) {
    for (int i = 1; i <= state.gpu_count; i++) state.things[i].event_count = state.things[i].sample_count = 0;
    load.count = 0, load.read = 0, load.answered_ns = INT64_MIN;
}

static void add_event(int64_t clock_ns, int on) {
    int64_t earliest_ns = load.count ? load.events[load.count - 1].clock_ns : INT64_MIN;
    if (load.answered_ns > earliest_ns) earliest_ns = load.answered_ns;
    load.events = grown(load.events, (load.count + 1) * sizeof *load.events);
    load.events[load.count++] = (struct event){clock_ns > earliest_ns ? clock_ns : earliest_ns, on};
}

static int read_lines(FILE *file) {
    char line[64], word[8], more;
    long long ns;
    fseeko(file, load.read, SEEK_SET);
    while (fgets(line, sizeof line, file)) {
        /* The rest of a line that is still being written comes with the next call. */
        int whole = strchr(line, '\n') != NULL;
        if (!whole && strlen(line) + 1 < sizeof line) return SUCCESS;
        if (!whole || sscanf(line, "%7s %lld %c", word, &ns, &more) != 2 || (strcmp(word, "on") && strcmp(word, "off")))
            return complain(line, load.path);
        add_event(ns, strcmp(word, "on") == 0);
        load.read += (off_t)strlen(line);
    }
    return SUCCESS;
}

static int read_load(void) {
    char path[sizeof load.path];
    struct stat now;
    snprintf(path, sizeof path, "%s.load", getenv("JOULEBOARD_SIMULATED_GPU"));
    int same_clock = load.manual == state.manual && load.clock == state.clock && load.clock_ns == state.things[0].clock_ns;
    if (strcmp(path, load.path) != 0 || !same_clock) {
        forget_load();
        strcpy(load.path, path);
        load.inode = 0, load.manual = state.manual, load.clock = state.clock, load.clock_ns = state.things[0].clock_ns;
    }
    if (stat(path, &now) != 0) return errno == ENOENT ? SUCCESS : complain("cannot be read", path);
    if (load.inode != 0 && (now.st_ino != load.inode || now.st_dev != load.device || now.st_size < load.read))
        forget_load();
    load.inode = now.st_ino, load.device = now.st_dev;
    if (now.st_size == load.read) return SUCCESS;
    FILE *file = fopen(path, "re");
    if (file == NULL) return complain("cannot be read", path);
    int result = read_lines(file);
    fclose(file);
    return result;
}

/* --- entering a call ----------------------------------------------------------------------------------------- */

static int64_t clock_reading_ns(void) {
    if (state.manual) return state.things[0].now_ns;
    struct timespec now;
    clock_gettime(state.clock, &now);
    return (int64_t)now.tv_sec * SECOND_NS + now.tv_nsec;
}

/* The next span of a kind, after `last`, that lies over a moment. */
static const struct span *next_span(const struct thing *thing, const char *kind, int64_t t_ns, const struct span *last) {
    for (size_t i = last ? (size_t)(last - thing->spans) + 1 : 0; i < thing->span_count; i++) {
        const struct span *s = &thing->spans[i];
        if (s->from_ns <= t_ns && t_ns < s->to_ns && strcmp(s->kind, kind) == 0) return s;
    }
    return NULL;
}

static int declared_failure(const struct thing *thing, const char *function, int64_t t_ns) {
    for (const struct span *s = NULL; (s = next_span(thing, "fail", t_ns, s));)
        if (strcmp(s->name, "*") == 0 || strcmp(s->name, function) == 0) return (int)s->a;
    return SUCCESS;
}

/* Take the lock, read the file, find the GPU (handle: its number from 1) and answer with a declared failure if any. */
static int enter(const char *function, const void *handle, int wants_gpu, struct thing **gpu, int64_t *now_ns) {
    pthread_mutex_lock(&lock);
    int result = reread();
    if (result != SUCCESS) return result;
    result = read_load();
    if (result != SUCCESS) return result;
    int64_t reading_ns = clock_reading_ns();
    if (reading_ns > load.answered_ns) load.answered_ns = reading_ns;
    *now_ns = state.manual ? reading_ns : (reading_ns - state.things[0].clock_ns) * state.things[0].scale;
    result = declared_failure(&state.things[0], function, *now_ns);
    if (result != SUCCESS) return result;
    if (users == 0 && strncmp(function, "nvmlInit", 8) != 0) return UNINITIALIZED;
    if (!wants_gpu) return SUCCESS;
    uintptr_t index = (uintptr_t)handle;
    if (index < 1 || index > (uintptr_t)state.gpu_count) return INVALID_ARGUMENT;
    *gpu = &state.things[index];
    return declared_failure(*gpu, function, *now_ns);
}

#define ANSWER(handle, wants_gpu, ...) \
    struct thing *gpu = &state.things[0]; \
    int64_t now_ns = 0; \
    int result = enter(__func__, handle, wants_gpu, &gpu, &now_ns); \
    (void)gpu, (void)now_ns; \
    if (result == SUCCESS) { __VA_ARGS__; } \
    pthread_mutex_unlock(&lock); \
    return result
#define SYSTEM(...) ANSWER(NULL, 0, __VA_ARGS__)
#define DEVICE(...) ANSWER(device, 1, __VA_ARGS__)
#define SUPPORTED(number, out) if (gpu->number < 0) result = NOT_SUPPORTED; else *(out) = (unsigned)gpu->number

static int copy_text(char *out, unsigned size, const char *text) {
    if (strlen(text) >= size) return INSUFFICIENT_SIZE;
    memcpy(out, text, strlen(text) + 1);
    return SUCCESS;
}

/* --- NVML: the system ---------------------------------------------------------------------------------------- */

int nvmlInitWithFlags(unsigned flags) { (void)flags; SYSTEM(users++); }
int nvmlInit_v2(void) { return nvmlInitWithFlags(0); }
int nvmlShutdown(void) { SYSTEM(users--); }
const char *nvmlErrorString(int code) { (void)code; return "an error of the SIMULATED GPU"; }
int nvmlSystemGetDriverVersion(char *out, unsigned size) { SYSTEM(result = copy_text(out, size, gpu->name)); }
int nvmlSystemGetNVMLVersion(char *out, unsigned size) { SYSTEM(result = copy_text(out, size, "SIMULATED 13")); }
int nvmlSystemGetCudaDriverVersion(int *out) { SYSTEM(*out = 13000); }
int nvmlDeviceGetCount_v2(unsigned *out) { SYSTEM(*out = (unsigned)state.gpu_count); }

int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **out) {
    ANSWER((void *)((uintptr_t)index + 1), 1, *out = (void *)((uintptr_t)index + 1));
}

int nvmlDeviceGetHandleByUUID(const char *uuid, void **out) {
    SYSTEM(
        result = NOT_FOUND;
        for (int i = 1; i <= state.gpu_count; i++)
            if (strcmp(state.things[i].uuid, uuid) == 0) result = SUCCESS, *out = (void *)(uintptr_t)i;
    );
}

/* --- NVML: one GPU ------------------------------------------------------------------------------------------- */

struct field { unsigned id, scope; long long timestamp, latency_us; int type, result; union { double d; unsigned u; unsigned long long ull; } value; };
struct process { unsigned pid; unsigned long long used_bytes; unsigned gpu_instance, compute_instance; };
struct violation { unsigned long long reference_us, violation_ns; };
struct temperature { unsigned version; int sensor, celsius; };
struct memory { unsigned long long total, free, used; };
struct utilisation { unsigned gpu, memory; };

int nvmlDeviceGetName(void *device, char *out, unsigned size) { DEVICE(result = copy_text(out, size, gpu->name)); }
int nvmlDeviceGetUUID(void *device, char *out, unsigned size) { DEVICE(result = copy_text(out, size, gpu->uuid)); }
int nvmlDeviceGetIndex(void *device, unsigned *out) { DEVICE(*out = (unsigned)(uintptr_t)device - 1); }
int nvmlDeviceGetArchitecture(void *device, unsigned *out) { DEVICE(*out = (unsigned)gpu->architecture); }
int nvmlDeviceGetC2cModeInfoV(void *device, unsigned *out) { DEVICE(SUPPORTED(c2c, out)); }
int nvmlDeviceGetMigMode(void *device, unsigned *out, unsigned *pending) { DEVICE(SUPPORTED(mig, out); *pending = *out); }
int nvmlDeviceGetPersistenceMode(void *device, unsigned *out) { DEVICE(SUPPORTED(persistence, out)); }
int nvmlDeviceGetEccMode(void *device, unsigned *out, unsigned *pending) { DEVICE(SUPPORTED(ecc, out); *pending = *out); }

int nvmlDeviceGetTotalEccErrors(void *device, int type, int counter, unsigned long long *out) {
    (void)counter;
    DEVICE(*out = (unsigned long long)(type == 0 ? gpu->ecc_corrected : gpu->ecc_uncorrected));
}

int nvmlDeviceGetTotalEnergyConsumption(void *device, unsigned long long *out) {
    DEVICE(if (gpu->base_mj < 0) result = NOT_SUPPORTED; else *out = (unsigned long long)counter_mj(gpu, now_ns));
}

int nvmlDeviceGetPowerUsage(void *device, unsigned *out) {
    DEVICE(*out = (unsigned)(gpu->architecture >= AMPERE ? average_mw(gpu, now_ns) : power_mw(gpu, now_ns)));
}

static void fill(struct field *f, struct thing *gpu, int64_t now_ns) {
    f->timestamp = now_ns / 1000, f->latency_us = 0, f->result = SUCCESS, f->type = VALUE_UNSIGNED;
    if (f->scope == SCOPE_MEMORY) f->result = NOT_SUPPORTED;
    else if (f->id == FIELD_POWER_AVERAGE) f->value.u = (unsigned)average_mw(gpu, now_ns);
    else if (f->id == FIELD_POWER_INSTANT) f->value.u = (unsigned)power_mw(gpu, now_ns);
    else if (f->id == FIELD_ENERGY)
        f->type = VALUE_UNSIGNED_LONG_LONG, f->value.ull = (unsigned long long)counter_mj(gpu, now_ns);
    else f->result = NOT_SUPPORTED;
}

int nvmlDeviceGetFieldValues(void *device, int count, struct field *fields) {
    DEVICE(for (int i = 0; i < count; i++) fill(&fields[i], gpu, now_ns));
}

int nvmlDeviceGetPowerManagementLimit(void *device, unsigned *out) { DEVICE(SUPPORTED(limit_mw, out)); }
int nvmlDeviceGetPowerManagementDefaultLimit(void *device, unsigned *out) { DEVICE(SUPPORTED(default_limit_mw, out)); }
int nvmlDeviceSetPowerManagementLimit(void *device, unsigned mw) { (void)mw; DEVICE(result = NO_PERMISSION); }

int nvmlDeviceGetPowerManagementLimitConstraints(void *device, unsigned *low, unsigned *high) {
    DEVICE(SUPPORTED(min_limit_mw, low); *high = (unsigned)gpu->max_limit_mw);
}

int nvmlDeviceGetEnforcedPowerLimit(void *device, unsigned *out) {
    DEVICE(
        SUPPORTED(limit_mw, out);
        for (const struct span *s = NULL; (s = next_span(gpu, "enforced_limit", now_ns, s));) *out = (unsigned)s->a;
    );
}

int nvmlDeviceGetCurrentClocksEventReasons(void *device, unsigned long long *out) {
    DEVICE(*out = 0; for (const struct span *s = NULL; (s = next_span(gpu, "throttle", now_ns, s));) *out |= (unsigned long long)s->a);
}
int nvmlDeviceGetCurrentClocksThrottleReasons(void *device, unsigned long long *out) {
    return nvmlDeviceGetCurrentClocksEventReasons(device, out);
}
int nvmlDeviceGetSupportedClocksEventReasons(void *device, unsigned long long *out) { DEVICE(*out = 0x1ff); }

/* As NVML: `count` holds the room and comes back as the number of processes. */
int nvmlDeviceGetComputeRunningProcesses_v3(void *device, unsigned *count, struct process *out) {
    DEVICE(
        unsigned found = 0;
        for (const struct span *s = NULL; (s = next_span(gpu, "process", now_ns, s)); found++)
            if (found < *count && out)
                out[found] = (struct process){(unsigned)s->a, (unsigned long long)s->b, UINT32_MAX, UINT32_MAX};
        if (found > *count) result = INSUFFICIENT_SIZE;
        *count = found;
    );
}
int nvmlDeviceGetGraphicsRunningProcesses_v3(void *device, unsigned *count, struct process *out) {
    (void)out;
    DEVICE(*count = 0);
}

/* Time that spans of kind `violation` with this policy have covered so far. */
int nvmlDeviceGetViolationStatus(void *device, int policy, struct violation *out) {
    DEVICE(
        *out = (struct violation){(unsigned long long)(now_ns / 1000), 0};
        for (size_t i = 0; i < gpu->span_count; i++) {
            const struct span *s = &gpu->spans[i];
            if (strcmp(s->kind, "violation") != 0 || s->a != policy || s->from_ns >= now_ns) continue;
            out->violation_ns += (unsigned long long)((now_ns < s->to_ns ? now_ns : s->to_ns) - s->from_ns);
        }
    );
}

int nvmlDeviceGetClockInfo(void *device, int type, unsigned *out) {
    DEVICE(
        *out = (unsigned)(type == 2 ? gpu->memory_mhz : gpu->sm_mhz);
        for (const struct span *s = NULL; type != 2 && (s = next_span(gpu, "sm_clock", now_ns, s));) *out = (unsigned)s->a;
    );
}
int nvmlDeviceGetMaxClockInfo(void *device, int type, unsigned *out) {
    DEVICE(*out = (unsigned)(type == 2 ? gpu->max_memory_mhz : gpu->max_sm_mhz));
}

/* A span `temperature` is a ramp from a to b millidegrees; its end stays until the next one. */
static unsigned celsius(const struct thing *gpu, int64_t now_ns) {
    int64_t mc = gpu->temperature_mc;
    for (size_t i = 0; i < gpu->span_count; i++) {
        const struct span *s = &gpu->spans[i];
        if (strcmp(s->kind, "temperature") != 0 || now_ns < s->from_ns) continue;
        int64_t width_ns = s->to_ns - s->from_ns, into_ns = now_ns - s->from_ns;
        mc = into_ns >= width_ns ? s->b : s->a + (int64_t)((wide_t)(s->b - s->a) * into_ns / width_ns);
    }
    return (unsigned)(mc / 1000);
}

int nvmlDeviceGetTemperature(void *device, int sensor, unsigned *out) { (void)sensor; DEVICE(*out = celsius(gpu, now_ns)); }
int nvmlDeviceGetTemperatureV(void *device, struct temperature *out) {
    DEVICE(if (out->version != TEMPERATURE_V1) result = VERSION_MISMATCH; else out->celsius = (int)celsius(gpu, now_ns));
}
int nvmlDeviceGetTemperatureThreshold(void *device, int kind, unsigned *out) {
    (void)kind;
    DEVICE(*out = (unsigned)(gpu->slowdown_mc / 1000));
}

int nvmlDeviceGetMemoryInfo(void *device, struct memory *out) {
    DEVICE(*out = ((struct memory){(unsigned long long)gpu->memory_bytes,
                                   (unsigned long long)(gpu->memory_bytes - gpu->used_bytes),
                                   (unsigned long long)gpu->used_bytes}));
}
int nvmlDeviceGetUtilizationRates(void *device, struct utilisation *out) {
    DEVICE(*out = ((struct utilisation){(unsigned)gpu->busy_percent, (unsigned)gpu->busy_percent}));
}
int nvmlDeviceGetCudaComputeCapability(void *device, int *major, int *minor) {
    DEVICE(*major = (int)gpu->architecture, *minor = 0);
}
