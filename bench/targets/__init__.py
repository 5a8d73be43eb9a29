"""What a load driver calls: each opens its connections and gives one call that checks its own answer."""
