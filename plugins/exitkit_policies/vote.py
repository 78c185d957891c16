"""Policy `vote`: leave when enough exits so far agree; all of them answer together."""

from dataclasses import dataclass

import torch
from torch import Tensor

from exitkit import Decision, Evidence, ExitPolicy, State, hookimpl, knob


@dataclass(frozen=True)
class Vote(ExitPolicy):
    """Leave once `votes` exits, in a row or not, have given the same label. The answer is the mean of what they said.

    The rule of ensembles of internal classifiers (Sun et al., 2105.13792, section 3.3) with a fixed number of votes in
    place of the paper's share that depends on depth. The answer is the log of the mean probability of the exits so far,
    at the last exit too, so a row's label is the ensemble's and may differ from the label that has the votes.
    """

    votes: int = knob(
        2, low=2, high=lambda shape: max(2, shape.exits), off=lambda shape: shape.exits + 1, raising="later"
    )

    def start(self, units: int, device: torch.device) -> State:
        """No votes yet; both get a column per label at the first exit."""
        empty = torch.zeros(units, 0, dtype=torch.float32, device=device)
        return {"votes": empty, "said": empty}

    def decide(self, seen: Evidence, state: State) -> tuple[Decision, State]:
        """Each unit by itself; ties between labels go to the first."""
        counted = self.count(seen, state)
        leave = counted["votes"].amax(dim=-1) >= self.votes
        return Decision(leave, answer=together(counted)), counted

    def conclude(self, seen: Evidence, state: State) -> Tensor:
        """The last exit votes too."""
        return together(self.count(seen, state))

    def count(self, seen: Evidence, state: State) -> State:
        """The state with this exit's vote in it."""
        shares = seen.logits.float().softmax(dim=-1)
        vote = torch.zeros_like(shares).scatter(1, seen.logits.argmax(dim=-1, keepdim=True), 1.0)
        if state["votes"].shape[1] == 0:
            return {"votes": vote, "said": shares}
        return {"votes": state["votes"] + vote, "said": state["said"] + shares}


def together(state: State) -> Tensor:
    """Log of the mean probability [U, C]."""
    return (state["said"] / state["votes"].sum(dim=-1, keepdim=True)).clamp(min=1e-30).log()


@hookimpl
def register_policies(register):  # type: ignore[no-untyped-def]
    """Offer `vote`."""
    register("vote", Vote)
