"""Values that sender and receiver sessions share: identities, policy, bottleneck."""
