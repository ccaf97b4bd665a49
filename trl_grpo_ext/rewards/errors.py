"""The error that adapters and the runtime share."""


class RewardError(RuntimeError):
    """A reward could not be computed and the policy is "raise". The message says what went wrong.

    Attributes:
        row: the row of the reward call, from 0; the first one when the whole call failed.
    """

    row: int
