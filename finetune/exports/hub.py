"""A timm folder on the Hugging Face Hub, where `timm.create_model("hf-hub:USER/NAME", pretrained=True)` finds it."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

from finetune.errors import RecipeError, ResourceError
from finetune.wording import first_line

LOG_IN = "Log in: hf auth login. What was exported is untouched; the same command tries again."


def check_repository(repository: str) -> None:
    """Check that a name can be that of a repository.

    Raises:
        RecipeError: it cannot.
    """
    try:
        validate_repo_id(repository)
    except HFValidationError as error:
        raise RecipeError(f"--push-to-hub {repository}: {first_line(error)}", hint="Name it USER/NAME.") from error


def push(folder: Path, repository: str) -> str:
    """Put a folder into a repository, which is made where it is missing, and return its address.

    Raises:
        ResourceError: the Hub cannot be reached, or refuses.
    """
    hub = HfApi()
    try:
        hub.create_repo(repository, exist_ok=True)
        found = hub.upload_folder(repo_id=repository, folder_path=folder, commit_message="A model trained by finetune")
    except (HfHubHTTPError, LocalTokenNotFoundError) as error:
        raise ResourceError(f"the Hub refuses {repository}: {first_line(error)}", hint=LOG_IN) from error
    except Exception as error:  # what finds no way has classes of its own in every version of the library
        raise ResourceError(
            f"the Hub cannot be reached: {first_line(error)}",
            hint=f"The folder is complete and stays: {folder}. The same command tries again.",
        ) from error
    return str(found)
