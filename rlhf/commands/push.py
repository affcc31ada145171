"""`rlhf push`: export a policy and upload it; the only command that sends anything to the hub."""

from __future__ import annotations

import re

from rlhf.commands.export import exported
from rlhf.commands.request import Request
from rlhf.errors import ConfigError, MissingError


def main(request: Request) -> int:
    """rlhf push."""
    repo = request.options.get("repo", "")
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repo):
        raise ConfigError(f"repo must be OWNER/NAME (got {repo or 'nothing'})", hints=["rlhf push repo=me/my-model"])
    folder = exported(request)

    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError

    private = "--public" not in request.flags
    try:
        hub = HfApi()
        hub.create_repo(repo, private=private, exist_ok=True)
        hub.upload_folder(repo_id=repo, folder_path=folder, commit_message=f"rlhf export of {folder.name}")
    except (HfHubHTTPError, LocalTokenNotFoundError, OSError) as error:
        first = str(error).strip().splitlines()[0]
        raise MissingError(
            f"{repo} cannot be written: {first}",
            where=f"the export is whole: {folder}",
            hints=["log in with a token that may write: hf auth login"],
        ) from None
    print(f"pushed: {repo} ({'private' if private else 'public'})")
    return 0
