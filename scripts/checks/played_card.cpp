// A process that plays a GPU: ggml's RPC server on the CPU, which grants only so much memory; and the client's
// side, which lets ggml's RPC device behave as CUDA's does. Compiled with ggml's own ggml-rpc.cpp.

#include "ggml-backend-impl.h"
#include "ggml-backend.h"
#include "ggml-rpc.h"

#include <cstdio>
#include <cstdlib>
#include <map>
#include <string>

namespace {

// Rows from which CUDA multiplies with weights that lie in RAM (ggml_backend_cuda_device_offload_op).
constexpr int64_t OFFLOAD_ROWS = 32;

size_t limit, held, refused;
std::map<ggml_backend_buffer_t, void (*)(ggml_backend_buffer_t)> plain_free;
ggml_backend_buffer_t (*plain_alloc)(ggml_backend_buffer_type_t, size_t);

void free_buffer(ggml_backend_buffer_t buffer) {
    held -= buffer->size;
    printf("freed %zu\n", buffer->size);
    auto found = plain_free.find(buffer);
    auto plain = found->second;
    plain_free.erase(found);
    plain(buffer);
}

ggml_backend_buffer_t alloc_buffer(ggml_backend_buffer_type_t type, size_t size) {
    if (size > limit - held) {
        printf("refused %zu\n", size);
        return nullptr;
    }
    ggml_backend_buffer_t buffer = plain_alloc(type, size);
    if (buffer != nullptr) {
        held += buffer->size;
        plain_free[buffer] = buffer->iface.free_buffer;
        buffer->iface.free_buffer = free_buffer;
        printf("granted %zu\n", size);
    }
    return buffer;
}

void get_memory(ggml_backend_dev_t, size_t * free, size_t * total) {
    *free = limit - held;
    *total = limit;
}

bool offload_op(ggml_backend_dev_t, const ggml_tensor * op) {
    switch (op->op) {
        case GGML_OP_GET_ROWS:
            return false;
        case GGML_OP_MUL_MAT:
            return op->ne[1] >= OFFLOAD_ROWS;
        case GGML_OP_MUL_MAT_ID:
        case GGML_OP_ROPE:
        case GGML_OP_ROPE_BACK:
            return op->ne[2] >= OFFLOAD_ROWS;
        default:
            return ggml_nrows(op) >= OFFLOAD_ROWS;
    }
}

ggml_backend_buffer_type_t host_buffer_type(ggml_backend_dev_t) {
    return ggml_backend_cpu_buffer_type();
}

} // namespace

// Serves one client after the other, for ever; each buffer that is granted, freed or refused is a line of stdout.
extern "C" void serve_card(const char * endpoint, size_t n_bytes, size_t n_threads) {
    setvbuf(stdout, nullptr, _IOLBF, 0);
    limit = n_bytes;
    ggml_backend_dev_t device = ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_CPU);
    device->iface.get_memory = get_memory;
    ggml_backend_buffer_type_t type = ggml_backend_cpu_buffer_type();
    plain_alloc = type->iface.alloc_buffer;
    type->iface.alloc_buffer = alloc_buffer;
    ggml_backend_rpc_start_server(endpoint, nullptr, n_threads, 1, &device);
}

// Gives llama.cpp in this process the card at an endpoint as a GPU.
extern "C" void use_card(const char * endpoint) {
    ggml_backend_reg_t registry = ggml_backend_rpc_add_server(endpoint);
    ggml_backend_dev_t device = ggml_backend_reg_dev_get(registry, 0);
    device->iface.offload_op = offload_op;
    device->iface.get_host_buffer_type = host_buffer_type;
    ggml_backend_register(registry);
}

// llama.cpp's own tools have the card, too, where this library is preloaded and the variable names an endpoint.
__attribute__((constructor)) static void use_named_card() {
    const char * endpoint = getenv("PLAYED_CARD");
    if (endpoint != nullptr) {
        use_card(endpoint);
    }
}
