// pfdiff_control.h: a program prepared for one sample, its memory and its updates made once.
#include "pfdiff_control.h"

#include <algorithm>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "artifact.h"
#include "error.h"
#include "update.h"

struct pfd_control_t final {
    pfd_control_t(const pfd_program_t& table, const pfdiff::Policy& made, const pfdiff::Contract& contract)
        : program(table),
          policy(made),
          horizon(contract.shape[0]),
          feeds(std::any_of(table.c_in.begin(), table.c_in.end(), [](double c) { return c != 1; })),
          stride((contract.elements + 15) / 16 * 16 + 16),
          memory(static_cast<std::size_t>((table.buffers + 2) * stride)) {
        const auto access = pfdiff::accesses(program, feeds);
        for (int index = 0; index <= program.nfe; ++index)
            updates.emplace_back(program, index, access[static_cast<std::size_t>(index)]);
        for (int j = 0; j < program.buffers; ++j) states[j] = memory.data() + j * stride;
        output = memory.data() + program.buffers * stride;
        input = feeds ? output + stride : states[0];
    }

    void sample(std::uint64_t seed, pfd_network_t network, void* context, float* actions) {
        const auto elements = horizon * width();
        if (pfd_noise(&seed, 1, elements, states[0]) != PFD_OK) throw pfdiff::input_error(pfd_last_error());
        updates.back().run(states, states[0], input, elements, workers);
        for (int n = 0; n < program.nfe; ++n) evaluate(n, network, context, elements);
        const float* sampled = states[0] + policy.first * width();
        for (std::int64_t i = 0; i < policy.count * width(); ++i) {
            const auto at = static_cast<std::size_t>(i % width());
            actions[i] = static_cast<float>(policy.scale[at] * sampled[i] + policy.offset[at]);
        }
    }

    void evaluate(int n, pfd_network_t network, void* context, std::int64_t elements) {
        const auto at = static_cast<std::size_t>(n);
        const pfd_evaluation_t evaluation{n, program.nfe, program.times[at], program.network_times[at], 1, elements};
        if (const int status = network(context, &evaluation, input, output); status != 0) {
            const auto words = pfdiff::take_callback_error();
            throw pfdiff::backend_error("the network failed at evaluation " + std::to_string(n + 1) + ": " +
                                        (words.empty() ? "it returned " + std::to_string(status)
                                                       : pfdiff::printable(words, 230)));
        }
        if (!updates[at].run(states, output, input, elements, workers))
            throw pfdiff::backend_error("the network's output is not finite at evaluation " + std::to_string(n + 1) +
                                        "; check the observation");
    }

    std::int64_t width() const { return static_cast<std::int64_t>(policy.scale.size()); }

    const pfd_program_t& program;
    const pfdiff::Policy policy;
    const std::int64_t horizon;
    const bool feeds;
    const std::int64_t stride;
    std::vector<float> memory;
    std::vector<pfdiff::Update> updates;
    pfdiff::Workers workers{1};
    float* states[pfdiff::most_buffers] = {};
    float *output = nullptr, *input = nullptr;
};

extern "C" pfd_status_t pfd_control_create(const pfd_engine_t* engine, int32_t nfe, pfd_control_t** control) {
    return pfdiff::guarded([&] {
        if (engine == nullptr || control == nullptr)
            throw pfdiff::input_error("a control loop without an engine or a place; give both");
        *control = nullptr;
        if (!engine->policy)
            throw pfdiff::input_error("this engine is no policy; build it with observations and actions");
        const pfd_program_t* program = nullptr;
        if (const auto status = pfd_program(engine, nfe, &program); status != PFD_OK)
            throw pfdiff::Error(status, pfd_last_error());
        if (!program->draws.empty())
            throw pfdiff::input_error(program->solver + " draws noise on the way, which a control loop does not");
        *control = std::make_unique<pfd_control_t>(*program, *engine->policy, engine->contract).release();
    });
}

extern "C" void pfd_control_free(pfd_control_t* control) { delete control; }

extern "C" pfd_status_t pfd_control_view(const pfd_control_t* control, pfd_control_view_t* view) {
    return pfdiff::guarded([&] {
        if (control == nullptr || view == nullptr || view->struct_size < sizeof view->struct_size)
            throw pfdiff::input_error("a view of nothing, or its struct_size is not set; set it to sizeof the view");
        const pfd_control_view_t full{view->struct_size,    control->program.nfe,
                                      control->policy.encoded, control->horizon,
                                      control->policy.first, control->policy.count,
                                      control->width()};
        std::memcpy(view, &full, std::min(view->struct_size, sizeof full));
    });
}

extern "C" pfd_status_t pfd_control_sample(pfd_control_t* control, uint64_t seed, pfd_network_t network, void* context,
                                           float* actions) {
    return pfdiff::guarded([&] {
        if (control == nullptr || network == nullptr || actions == nullptr)
            throw pfdiff::input_error("a tick without a control, a network or actions; give all three");
        control->sample(seed, network, context, actions);
    });
}
