"""Make dashboards, alerts and scrape rules from the metrics registry."""
