#include "policy.h"

#include <string>

namespace pfdiff {

Policy read_policy(const json::Node& node, const Contract& contract) {
    if (contract.shape.size() != 2) node.refuse("for samples of another shape", "samples [horizon, actions]");
    const auto horizon = contract.shape[0], actions = contract.shape[1];
    Policy policy;
    const std::vector<std::size_t> size{static_cast<std::size_t>(actions)};
    policy.scale = node["scale"].numbers(size), policy.offset = node["offset"].numbers(size);
    policy.first = node["first"].integer(0, horizon - 1);
    policy.count = node["count"].integer(1, horizon - policy.first);
    policy.encoded = node.find("encoder").has_value();
    return policy;
}

}  // namespace pfdiff
