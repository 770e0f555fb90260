"""The base of every section of a config."""

from pydantic import BaseModel, ConfigDict


class Settings(BaseModel):
    """Base of all sections: immutable, and closed to keys it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid")
