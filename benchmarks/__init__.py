"""Speed and memory, side by side with hand-written code and other libraries."""
