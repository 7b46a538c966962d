"""Fault tests start jobs like the integration tests do."""

from tests.integration.conftest import digits

__all__ = ["digits"]
