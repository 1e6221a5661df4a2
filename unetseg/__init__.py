"""unetseg: U-Nets whose long skip connections can be switched, measured and explained."""

__version__ = "0.1.0"
