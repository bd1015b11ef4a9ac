"""Health: the checks of this process, and the ejection of failing instances of others."""
