"""The way of symbols to the network: demand, plans, frames and pacing."""
