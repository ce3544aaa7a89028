// The client's side of a process that plays a GPU (`acestep-gguf rpc-server`): ggml's RPC device behaves as CUDA's
// does. Compiled with ggml's own ggml-rpc.cpp.

#include "ggml-backend-impl.h"
#include "ggml-backend.h"
#include "ggml-rpc.h"

#include <cstdlib>

namespace {

// Rows from which CUDA multiplies with weights that lie in RAM (ggml_backend_cuda_device_offload_op).
constexpr int64_t OFFLOAD_ROWS = 32;

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
