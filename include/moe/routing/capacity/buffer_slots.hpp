// SPDX-License-Identifier: MIT
#pragma once

#include <tuple>
#include <vector>

#include "moe/routing/capacity/capacity_options.hpp"
#include "moe/routing/routing.hpp"

namespace moe::inline MOE_ABI {

namespace detail {

/// Who waits for a place at an expert: a token, with its first choice, or a choice.
struct Waiting {
  double key;  // served in ascending order
  Index token, choice;
};

/// Working memory of serving.
struct Service {
  std::vector<Index> count;  // per expert
  std::vector<Waiting> queue;
};

/// Fills the queue with all that waits for a place, in order of service: valid tokens, or their choices where those
/// have keys of their own. Groups stand together if they compete among themselves only.
template <class S>
void queue_for_service(const CapacityOptions& options, const Step& step, const Routing<S>& routing,
                       std::vector<Waiting>& queue) {
  const RandomField random = step.random(Purpose::Capacity);
  const auto key = [&](Index t) -> double {
    if (options.order == ServiceOrder::Random) return random.uniform(step.id(t));
    S best = -std::numeric_limits<S>::infinity();
    if (options.order == ServiceOrder::ByScore)
      for (const S w : routing.weights(t)) best = w > best ? w : best;  // never NaN, which sort could not order
    return -static_cast<double>(best);
  };
  const auto key_of_choice = [&](Index a) {
    const S weight = routing.weights()[static_cast<std::size_t>(a)];
    return weight == weight ? -static_cast<double>(weight) : std::numeric_limits<double>::infinity();
  };
  queue.clear();
  for (Index t = 0; t < routing.num_tokens(); ++t) {
    if (!step.is_valid(t)) continue;
    if (options.order != ServiceOrder::ByWeight || routing.begin(t) == routing.end(t))
      queue.push_back({key(t), t, routing.begin(t)});
    else
      for (Index a = routing.begin(t); a < routing.end(t); ++a) queue.push_back({key_of_choice(a), t, a});
  }
  const bool grouped = options.scope == CapacityScope::Group;
  const bool by_place = options.order == ServiceOrder::ByPosition || options.order == ServiceOrder::ByToken;
  if (by_place && !grouped) return;
  const auto place = [&](const Waiting& w) {
    return std::tuple(grouped ? step.group(w.token) : 0, by_place ? 0 : w.key, w.choice);
  };
  std::sort(queue.begin(), queue.end(), [&](const Waiting& a, const Waiting& b) { return place(a) < place(b); });
}

/// Calls serve(assignment) for every choice of those who wait, in order of service; reorders them.
template <class S, class Serve>
void serve_in_order(ServiceOrder order, std::span<Waiting> waiting, const Routing<S>& routing, const Serve& serve) {
  if (order == ServiceOrder::ByWeight || order == ServiceOrder::ByToken) {
    for (const Waiting& w : waiting) {
      const Index end = routing.end(w.token), last = order == ServiceOrder::ByToken ? end : std::min(w.choice + 1, end);
      for (Index a = w.choice; a < last; ++a) serve(a);
    }
    return;
  }
  auto end = waiting.end();
  for (Index slot = 0;; ++slot) {
    end =
        std::remove_if(waiting.begin(), end, [&](const Waiting& w) { return w.choice + slot >= routing.end(w.token); });
    if (end == waiting.begin()) return;
    for (auto w = waiting.begin(); w != end; ++w) serve(w->choice + slot);
  }
}

/// Seats all choices in the queue that were not dropped, group by group: begin(demand) opens the places of a group;
/// seat(a, slot) is offered the next slot of its expert and says whether it is taken.
template <class S, class Begin, class Seat>
void seat_choices(const CapacityOptions& options, Index num_experts, const Step& step, const Routing<S>& routing,
                  Service& service, const Begin& begin, const Seat& seat) {
  std::vector<Index>& served = service.count;
  std::vector<Waiting>& queue = service.queue;
  const bool grouped = options.scope == CapacityScope::Group;
  for (std::size_t first = 0, last = 0; first < queue.size(); first = last) {
    CapacityDemand demand;
    for (; last < queue.size(); ++last) {
      const Index t = queue[last].token;
      if (grouped && step.group(t) != step.group(queue[first].token)) break;
      const bool leads = queue[last].choice == routing.begin(t);  // of a token's entries, where it has several
      demand.num_tokens += leads ? 1 : 0;
      demand.num_choices += leads ? routing.end(t) - routing.begin(t) : 0;
    }
    served.assign(static_cast<std::size_t>(num_experts), 0);
    begin(demand);
    serve_in_order(options.order, std::span(queue).subspan(first, last - first), routing, [&](Index a) {
      const auto at = static_cast<std::size_t>(a);
      if (routing.dropped()[at]) return;
      Index& next = served[static_cast<std::size_t>(routing.experts()[at])];
      if (seat(a, next)) ++next;
    });
  }
}

}  // namespace detail

/// Place in the buffer of its expert, from 0, of every choice, counted in options.order and options.scope and without a
/// limit; -1 of dropped choices and of padding. For buffers of fixed size [num_experts, capacity, model_dim]: dispatch
/// of this library needs none. Returns [num_assignments].
/// Throws std::invalid_argument if the routing names an expert outside [0, num_experts).
/// O(assignments), and a sort unless ByPosition or ByToken in Batch; allocates the result.
template <class S>
std::vector<Index> buffer_slots(const CapacityOptions& options, Index num_experts, const Step& step,
                                const Routing<S>& routing) {
  detail::require_experts("moe::buffer_slots", routing, num_experts);
  step.validate("moe::buffer_slots", routing.num_tokens());
  std::vector<Index> slot(routing.experts().size(), -1);
  detail::Service service;
  detail::queue_for_service(options, step, routing, service.queue);
  detail::seat_choices(
      options, num_experts, step, routing, service, [](const CapacityDemand&) {},
      [&](Index a, Index place) {
        slot[static_cast<std::size_t>(a)] = place;
        return true;
      });
  return slot;
}

}  // namespace moe::inline MOE_ABI
